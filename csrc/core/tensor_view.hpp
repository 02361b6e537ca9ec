/// @file tensor_view.hpp
/// Borrowed, contiguous memory with its element type and size. Views own nothing: whoever made the memory frees it, and
/// must keep it alive and, where a view is const, unchanged for the length of the call.
#pragma once

#include <cstddef>

#include "core/dtype.hpp"

namespace minerua {

/// `size` contiguous elements to read; the shape does not matter to element-wise operations.
struct ConstTensorView {
  const void* data = nullptr;
  DType dtype = DType::float32;
  std::size_t size = 0;

  /// Address of element `index`.
  const void* at(std::size_t index) const { return static_cast<const char*>(data) + index * size_of(dtype); }
};

/// `size` contiguous elements to write.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::float32;
  std::size_t size = 0;

  /// Address of element `index`.
  void* at(std::size_t index) const { return static_cast<char*>(data) + index * size_of(dtype); }
};

}  // namespace minerua
