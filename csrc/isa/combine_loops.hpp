/// @file combine_loops.hpp
/// Weighted sums of stored tensors of one element type, from memory through registers to memory. Included only by the files
/// of this folder, inside their instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/conversions.hpp"
#include "isa/loops.hpp"
#include "isa/pass_loops.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// Several native vectors of floats from neighbouring elements, and their stored bits. In which lane an element comes is the
/// type's own choice: everything between load and store looks at each lane by itself.
template <DType dtype>
struct Pack {
  static constexpr std::size_t elements = 2 * lanes;
  static constexpr std::size_t parts = elements / Floats::width;
  Floats::Native part[parts];

  static inline Pack load(const typename Element<dtype>::Storage* source, LargestBits<dtype>& seen) {
    Pack pack;
    seen.see_all(source, elements);
#pragma GCC unroll 2
    for (std::size_t g = 0; g < 2; ++g) {
      const Floats group = Conversion<dtype>::load(source + g * lanes);
#pragma GCC unroll 4
      for (std::size_t i = 0; i < Floats::parts; ++i) pack.part[g * Floats::parts + i] = group.part[i];
    }
    return pack;
  }

  inline void store(typename Element<dtype>::Storage* target, LargestBits<dtype>& seen) const {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < 2; ++g) {
      Floats group;
#pragma GCC unroll 4
      for (std::size_t i = 0; i < Floats::parts; ++i) group.part[i] = part[g * Floats::parts + i];
      Conversion<dtype>::store(group, target + g * lanes);
    }
    seen.see_all(target, elements);
  }
};

/// bfloat16 by words of two: the elements at even places in one vector, those at odd places in the other.
template <>
struct Pack<DType::bfloat16> {
  static constexpr std::size_t parts = 2, elements = 2 * Floats::width;
  Floats::Native part[parts];

  static inline Pack load(const std::uint16_t* source, LargestBits<DType::bfloat16>& seen) {
    Words words;
    __builtin_memcpy(&words, source, sizeof words);
    seen.see((LargestBits<DType::bfloat16>::Lanes)words);
    return {{(Floats::Native)(words << 16), (Floats::Native)(words & 0xffff0000u)}};
  }

  static inline Words rounded(const Floats::Native& values) {
    const Words bits = (Words)values;
    return values != values ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  }

  inline void store(std::uint16_t* target, LargestBits<DType::bfloat16>& seen) const {
    const Words words = (rounded(part[0]) >> 16) | (rounded(part[1]) & 0xffff0000u);
    seen.see((LargestBits<DType::bfloat16>::Lanes)words);
    __builtin_memcpy(target, &words, sizeof words);
  }
};

template <DType dtype, bool has_base>
inline __attribute__((always_inline)) Pack<dtype> sum_at(const StoredSums& given, std::size_t i, LargestBits<dtype>& seen) {
  using Storage = typename Element<dtype>::Storage;
  constexpr std::size_t parts = Pack<dtype>::parts;
  Pack<dtype> base{}, sums{};
  if (has_base) sums = base = Pack<dtype>::load(static_cast<const Storage*>(given.base) + i, seen);
  for (std::size_t k = 0; k < given.count_of_sources; ++k) {
    const Pack<dtype> x = Pack<dtype>::load(static_cast<const Storage*>(given.sources[k]) + i, seen);
    const float factor = given.coefficients[k];
#pragma GCC unroll 8
    for (std::size_t p = 0; p < parts; ++p) {
      const Floats::Native product = factor * (has_base ? x.part[p] - base.part[p] : x.part[p]);
      sums.part[p] = has_base || k > 0 ? sums.part[p] + product : product;
    }
  }
  return sums;
}

template <DType dtype, bool has_base>
bool sum_stored(const StoredSums& given, typename Element<dtype>::Storage* out) {
  using Storage = typename Element<dtype>::Storage;
  LargestBits<dtype> seen;
  std::size_t i = 0;
  for (; i + Pack<dtype>::elements <= given.count; i += Pack<dtype>::elements)
    sum_at<dtype, has_base>(given, i, seen).store(out + i, seen);
  for (; i < given.count; ++i) {
    const float base = has_base ? Element<dtype>::load(static_cast<const Storage*>(given.base)[i]) : 0.0f;
    float sum = base;
    for (std::size_t k = 0; k < given.count_of_sources; ++k) {
      const float x = Element<dtype>::load(static_cast<const Storage*>(given.sources[k])[i]);
      const float product = given.coefficients[k] * (has_base ? x - base : x);
      sum = has_base || k > 0 ? sum + product : product;
    }
    out[i] = Element<dtype>::store(sum);
  }
  return seen.is_finite() && given.count % Pack<dtype>::elements == 0;
}

template <DType dtype>
bool combine_stored(const StoredSums& given, void* out) {
  auto* const stored = static_cast<typename Element<dtype>::Storage*>(out);
  return given.base != nullptr ? sum_stored<dtype, true>(given, stored) : sum_stored<dtype, false>(given, stored);
}

}  // namespace
}  // namespace minerua::isa
