/// @file terms.hpp
/// The floats that loops work on, sixteen at a time, made from what is stored where they are needed, so that nothing lies in
/// between. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/conversions.hpp"
#include "isa/loops.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// x - b of stored numbers, or x without a base.
template <DType dtype>
struct TermReader {
  using Storage = typename Element<dtype>::Storage;
  const Storage* stored;
  const Storage* base;
  std::size_t count;

  TermReader(const void* stored_, const void* base_, std::size_t count_)
      : stored(static_cast<const Storage*>(stored_)), base(static_cast<const Storage*>(base_)), count(count_) {}
  explicit TermReader(const Terms& given) : TermReader(given.stored, given.base, given.count) {}

  inline __attribute__((always_inline)) Floats group(std::size_t i) const {
    // What the next tile will read: every tile is too short a stream for the machine to see where it leads. A prefetch
    // beyond the end of the memory does nothing.
    __builtin_prefetch(stored + i + count);
    const Floats values = Conversion<dtype>::load(stored + i);
    return base == nullptr ? values : values - Conversion<dtype>::load(base + i);
  }

  inline float one(std::size_t i) const {
    const float value = Element<dtype>::load(stored[i]);
    return base == nullptr ? value : value - Element<dtype>::load(base[i]);
  }

  /// The group in which the terms end, and zeros.
  inline Floats last_group(std::size_t i) const {
    float values[lanes] = {};
    for (std::size_t lane = 0; i + lane < count; ++lane) values[lane] = one(i + lane);
    return Floats::load(values);
  }
};

/// Calls body(i, terms from i on) for every group of sixteen; beyond the end they are zero.
template <DType dtype, class Body>
inline __attribute__((always_inline)) void over_groups(const TermReader<dtype>& terms, const Body& body) {
  std::size_t i = 0;
  for (; i + lanes <= terms.count; i += lanes) body(i, terms.group(i));
  if (i < terms.count) body(i, terms.last_group(i));
}

/// The lower and the upper eight of sixteen floats, in double precision.
inline __attribute__((always_inline)) void widen(const Floats& group, Doubles& lower, Doubles& upper) {
  typedef float Narrow __attribute__((vector_size(native_bytes / 2)));
#if defined(__AVX512F__)
  const auto& all = group.part[0];
  const Narrow halves[] = {__builtin_shufflevector(all, all, 0, 1, 2, 3, 4, 5, 6, 7),
                           __builtin_shufflevector(all, all, 8, 9, 10, 11, 12, 13, 14, 15)};
#else
  Narrow halves[2 * Doubles::parts];
  __builtin_memcpy(halves, &group, sizeof halves);
#endif
#pragma GCC unroll 4
  for (std::size_t i = 0; i < Doubles::parts; ++i) {
    lower.part[i] = __builtin_convertvector(halves[i], Doubles::Native);
    upper.part[i] = __builtin_convertvector(halves[Doubles::parts + i], Doubles::Native);
  }
}

}  // namespace
}  // namespace minerua::isa
