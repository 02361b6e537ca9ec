/// @file target.hpp
/// Where a merged tensor goes: memory, or a file at an offset that nobody else writes to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor_view.hpp"

namespace minerua {

/// Borrowed: memory for `size` elements, or an open file descriptor.
struct Target {
  DType dtype = DType::float32;
  std::size_t size = 0;
  void* memory = nullptr;
  int file = -1;
  std::int64_t offset = 0;
};

/// Takes one strand's results, a tile after the other, and counts those that are not finite. A chunk of a file is written
/// at once, when it is finished; memory is filled past the caches where it is larger than they are.
class Writer {
 public:
  explicit Writer(const Target& target);

  /// Where the tile of elements from `begin` on, `count` of them, is to be computed, rounded to the target's type.
  void* place(std::size_t count);

  /// Takes over what was computed in `place`; `is_finite` if that is known of all of it.
  void take(std::size_t begin, std::size_t count, bool is_finite = false);

  /// Ends a chunk: everything taken since the last one, which must have been contiguous, is in the target.
  /// @throws std::system_error with the system's number if a file cannot be written.
  void finish();

  std::int64_t not_finite = 0;

 private:
  const Target& target_;
  const std::size_t item_;
  const bool streams_;
  std::vector<char> pending_;
  std::size_t used_ = 0;   // bytes of `pending_`
  std::size_t first_ = 0;  // element that `pending_` begins with
};

}  // namespace minerua
