/// @file source.hpp
/// One model's tensor, read as floats a tile at a time: what lies on disk or in memory, and what turns it into the tensor
/// that is meant, so that nothing has to be written out before it is merged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor_view.hpp"
#include "isa/loops.hpp"

namespace minerua {

/// Element (i, j) of the tensor, seen as rows of `columns` elements, is stored(i, j) + Σ_r left[i, r] · right[r, j], summed
/// in the order of r. Borrows everything. Memory that another process cuts short while it is mapped is the caller's risk.
struct Source {
  /// What is stored: the tensor itself, or, with `rows`, rows to choose from.
  ConstTensorView stored;
  /// Elements of the tensor, and of one of its rows (1 or more).
  std::size_t size = 0, columns = 1;
  /// (size / columns) × rank and rank × columns; or null.
  const float* left = nullptr;
  const float* right = nullptr;
  std::size_t rank = 0;
  /// For every row of the tensor the row of `stored`, or for a negative number row -1 - n of `extra`; or null.
  const std::int64_t* rows = nullptr;
  const float* extra = nullptr;
  std::size_t extra_rows = 0;

  /// Whether a tile is a plain run of stored elements.
  bool is_plain() const { return left == nullptr && rows == nullptr; }
};

using Sources = std::vector<Source>;

/// Whether all sources and the base, if there is one, lie there in one element type, to be read as they are.
bool are_stored(const Sources& sources, const Source* base);

/// What loops make the terms of a source from: elements `begin` on of what `are_stored` said is there.
isa::Terms terms_of(const Source& source, const Source* base, std::size_t begin, std::size_t count);

/// Fills terms[i] with element begin + i, minus base[i] where `base` is not null, and with zeros up to the next multiple
/// of 16. Returns how many of the elements, before the subtraction, are not finite.
std::size_t read_tile(const Source& source, std::size_t begin, std::size_t count, const float* base, float* terms);

/// Fills values[i] with element begin + i for a range of any length, on all threads.
/// @throws InvalidArgument if the range or the source is malformed, before anything is written.
void load(const Source& source, std::size_t begin, std::size_t count, float* values);

/// @throws InvalidArgument, naming the operation, unless there is a source and all of them and the base have one size and
/// hold what they say.
void expect_alike(const char* operation, const Sources& sources, const Source* base);

}  // namespace minerua
