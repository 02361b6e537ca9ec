/// @file select.hpp
/// Which numbers of a tensor are its largest by magnitude: exactly, ties included, without sorting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/source.hpp"

namespace minerua {

/// Keys above this one are those of no float: a key is the 31 bits of a magnitude, which order as magnitudes do.
inline constexpr std::uint32_t key_limit = 0x7fffffffu;

/// The largest: numbers with a greater key, and the first `equal`, by index, of those with this very key.
struct Threshold {
  std::uint32_t key = 0;
  std::uint64_t equal = 0;
};

/// Keys from `low` to `high`, counted in bins of 2^shift keys, or listed one by one where they are known to be few.
struct KeyRange {
  std::uint32_t low = 0, high = key_limit;
  unsigned shift = 0;
  bool is_listed = false;

  std::size_t bins() const { return std::size_t{(high - low) >> shift} + 1; }
};

using KeyList = std::vector<std::uint32_t>;

/// How many keys were above a range, and in each of its bins; or those inside, in no order.
struct KeyHistogram {
  std::uint64_t above = 0;
  std::vector<std::uint64_t> bins{};
  std::vector<KeyList> listed{};  // one list from each strand
  bool is_complete = true;  // false if more were inside than a list may take
};

/// Counts the keys of x_k, or with a base of x_k − b (in float), all sources in one pass.
/// @param ranges K ranges of at most 2^16 bins.
/// @throws InvalidArgument, under the name of the operation.
std::vector<KeyHistogram> count_keys(const char* operation, const Sources& sources, const Source* base,
                                     const std::vector<KeyRange>& ranges);

/// For each source the threshold above which exactly counts[k] of its numbers are (none: key 2^31). One pass as a rule, after
/// a look at a sample; two or three where the numbers crowd in few places.
/// @throws InvalidArgument, also for a count above the size.
std::vector<Threshold> select_largest(const Sources& sources, const Source* base,
                                      const std::vector<std::uint64_t>& counts);

}  // namespace minerua
