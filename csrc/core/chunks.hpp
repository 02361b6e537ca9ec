/// @file chunks.hpp
/// How a pass goes over tensors: chunks of a fixed size are handed out in order to strands, one per thread, and each strand
/// works through its chunk a tile at a time in memory of its own. Nothing here depends on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "core/source.hpp"

namespace minerua {

/// Elements of a chunk, a multiple of 64. Four 16-bit inputs of this length fit beside each other in half a second-level
/// cache of 1 MiB, so that a chunk can be looked at twice at the price of once.
inline constexpr std::size_t chunk_elements = std::size_t{1} << 16;

/// The chunks of one pass, handed out in order, each to one strand.
class Claims {
 public:
  explicit Claims(std::size_t count) : count_(count) {}

  /// Takes the next chunk; false if none is left or another strand has failed.
  bool next(std::size_t& chunk) {
    if (has_failed_.load(std::memory_order_relaxed)) return false;
    chunk = next_.fetch_add(1, std::memory_order_relaxed);
    return chunk < count_;
  }

  /// Ends the pass early.
  void fail() { has_failed_.store(true, std::memory_order_relaxed); }

 private:
  const std::size_t count_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> has_failed_{false};
};

/// Calls `strand` on as many threads as there are, at most once per chunk; returns when all have. Every chunk that was
/// claimed is finished or has thrown before this returns; the first exception is thrown again.
void over_strands(std::size_t chunks, const std::function<void(Claims&)>& strand);

/// Cache-aligned floats, not initialised.
class Floats {
 public:
  explicit Floats(std::size_t count)
      : values_(static_cast<float*>(::operator new(count * sizeof(float), alignment))) {}

  float* get() const { return values_.get(); }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(float* values) const { ::operator delete(values, alignment); }
  };
  std::unique_ptr<float, Free> values_;
};

/// Elements of one tile for K sources and a base: all of it fits into a first-level cache of 32 KiB. A multiple of 64, the
/// same on every machine, because sums are grouped by it.
inline std::size_t tile_elements(std::size_t sources) {
  return std::clamp<std::size_t>(6144 / (sources + 1) / 64 * 64, 128, 2048);
}

/// The floats of one strand: a tile of the base, and one of every source minus the base.
class Tile {
 public:
  Tile(const Sources& sources, const Source* base)
      : not_finite(sources.size() + 1),
        sources_(sources),
        base_(base),
        is_stored_(are_stored(sources, base)),
        stride_(tile_elements(sources.size()) + 16),
        values_((sources.size() + 1) * stride_) {}

  /// Reads the base, then every source less the base.
  void read(std::size_t begin, std::size_t count) {
    read_base(begin, count);
    for (std::size_t k = 0; k < sources_.size(); ++k) read_term(k, begin, count);
  }

  /// Reads the base alone, if there is one.
  void read_base(std::size_t begin, std::size_t count) {
    if (base_ != nullptr) not_finite.back() += count_of(read_tile(*base_, begin, count, nullptr, values_.get()));
  }

  /// Reads source k less the base, which must have been read.
  float* read_term(std::size_t k, std::size_t begin, std::size_t count) {
    not_finite[k] += count_of(read_tile(sources_[k], begin, count, base(), term(k)));
    return term(k);
  }

  /// Comes before `terms` of these elements.
  void start(std::size_t begin, std::size_t count) {
    if (!is_stored_) read_base(begin, count);
  }

  /// Terms of source k for loops that make them where they need them, in the type `terms_type`; read only where that cannot
  /// be done.
  isa::Terms terms(std::size_t k, std::size_t begin, std::size_t count) {
    if (is_stored_) return terms_of(sources_[k], base_, begin, count);
    return {read_term(k, begin, count), nullptr, count};
  }

  /// Counts what is not finite of stored sources and base.
  void count_stored(std::size_t begin, std::size_t count) {
    const auto counted = isa::loops().count_not_finite[static_cast<int>(terms_type())];
    for (std::size_t k = 0; k < sources_.size(); ++k) not_finite[k] += count_of(counted(sources_[k].stored.at(begin), count));
    if (base_ != nullptr) not_finite.back() += count_of(counted(base_->stored.at(begin), count));
  }

  DType terms_type() const { return is_stored_ ? sources_[0].stored.dtype : DType::float32; }
  bool is_stored() const { return is_stored_; }

  const float* base() const { return base_ == nullptr ? nullptr : values_.get(); }
  float* term(std::size_t k) const { return values_.get() + (k + 1) * stride_; }
  std::size_t stride() const { return stride_; }
  std::size_t capacity() const { return stride_ - 16; }

  /// How many numbers were read so far that are not finite: of every source, then of the base.
  std::vector<std::int64_t> not_finite;

 private:
  static std::int64_t count_of(std::size_t count) { return static_cast<std::int64_t>(count); }

  const Sources& sources_;
  const Source* const base_;
  const bool is_stored_;
  const std::size_t stride_;  // not a power of two: the tiles would fall on one another in the cache
  Floats values_;
};

/// Elements [begin, end) of a tensor.
struct Span {
  std::size_t begin = 0, end = 0;
};

/// A tensor's elements in chunks: pieces of rows where rows are longer than a chunk, else several whole rows.
class RowChunks {
 public:
  /// @param longest Elements of a chunk, at most, and of a piece.
  RowChunks(std::size_t size, std::size_t row, std::size_t longest = chunk_elements)
      : row_(std::max<std::size_t>(1, row)),
        size_(size),
        longest_(longest),
        pieces_((row_ + longest - 1) / longest),
        grouped_(pieces_ > 1 ? 1 : longest / row_) {}

  /// Chunks that one row is cut into.
  std::size_t pieces() const { return pieces_; }
  std::size_t count() const { return (size_ / row_ + grouped_ - 1) / grouped_ * pieces_; }

  Span at(std::size_t chunk) const {
    const std::size_t first = chunk / pieces_ * grouped_ * row_ + chunk % pieces_ * longest_;
    const std::size_t last = (chunk / pieces_ * grouped_ + grouped_) * row_;
    return {first, std::min({size_, last, pieces_ > 1 ? first + longest_ : last})};
  }

 private:
  std::size_t row_, size_, longest_, pieces_, grouped_;
};

/// Calls body(begin, count) for pieces of [span.begin, span.end) that are at most `longest` long and stay within a row.
template <class Body>
void over_tiles(const Span& span, std::size_t longest, std::size_t row, const Body& body) {
  for (std::size_t begin = span.begin; begin < span.end;) {
    const std::size_t count = std::min({longest, span.end - begin, row - begin % row});
    body(begin, count);
    begin += count;
  }
}

}  // namespace minerua
