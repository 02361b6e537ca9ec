/// @file key_loops.hpp
/// Loops over keys, the 31 bits of a float's magnitude, which order as the magnitudes do. Included only by the files of this
/// folder, inside their instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/conversions.hpp"
#include "isa/loops.hpp"
#include "isa/terms.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// Keys are below 2^31, so comparing them as signed numbers is right, and cheap everywhere.
typedef std::int32_t Keys __attribute__((vector_size(native_bytes)));

constexpr std::int32_t magnitude_bits = 0x7fffffff;

inline Keys keys_of(const Floats::Native& terms) { return (Keys)terms & magnitude_bits; }

inline std::int32_t key_of(float term) { return static_cast<std::int32_t>(bits_of_float(term) & 0x7fffffffu); }

inline std::size_t sum_of_lanes(const Keys& counts) {
  std::size_t sum = 0;
  for (std::size_t lane = 0; lane < Floats::width; ++lane) sum += static_cast<std::size_t>(counts[lane]);
  return sum;
}

/// Appends the keys at which `chosen` is all ones, in order; returns the new end.
inline std::uint32_t* append_chosen(const Keys& keys, const Keys& chosen, std::uint32_t* end) {
#if defined(__AVX512F__)
  const __mmask16 mask = _mm512_test_epi32_mask((__m512i)chosen, (__m512i)chosen);
  _mm512_storeu_si512(end, _mm512_maskz_compress_epi32(mask, (__m512i)keys));
  return end + __builtin_popcount(mask);
#else
#if defined(__AVX2__)
  unsigned mask = static_cast<unsigned>(_mm256_movemask_ps((__m256)chosen));
#elif defined(__SSE2__)
  unsigned mask = static_cast<unsigned>(_mm_movemask_ps((__m128)chosen));
#else
  unsigned mask = 0;
  for (std::size_t lane = 0; lane < Floats::width; ++lane) mask |= (chosen[lane] & 1u) << lane;
#endif
  for (; mask != 0; mask &= mask - 1) *end++ = static_cast<std::uint32_t>(keys[__builtin_ctz(mask)]);
  return end;
#endif
}

template <DType dtype>
KeyCounts sort_out_keys(const Terms& given, std::int32_t low, std::int32_t high, std::uint32_t* inside) {
  const TermReader<dtype> terms(given);
  Keys above = {};
  std::uint32_t* end = inside;
  std::size_t i = 0, more = 0;
  for (; i + lanes <= terms.count; i += lanes) {
    const Floats group = terms.group(i);
#pragma GCC unroll 4
    for (std::size_t part = 0; part < Floats::parts; ++part) {
      const Keys keys = keys_of(group.part[part]);
      above -= keys > high;
      end = append_chosen(keys, (keys >= low) & (keys <= high), end);
    }
  }
  for (; i < terms.count; ++i) {
    const std::int32_t key = key_of(terms.one(i));
    more += key > high;
    if (key >= low && key <= high) *end++ = static_cast<std::uint32_t>(key);
  }
  return {sum_of_lanes(above) + more, static_cast<std::size_t>(end - inside)};
}

template <DType dtype>
std::size_t count_equal_keys(const Terms& given, std::int32_t key) {
  const TermReader<dtype> terms(given);
  Keys equal = {};
  std::size_t i = 0, more = 0;
  for (; i + lanes <= terms.count; i += lanes) {
    const Floats group = terms.group(i);
#pragma GCC unroll 4
    for (std::size_t part = 0; part < Floats::parts; ++part) equal -= keys_of(group.part[part]) == key;
  }
  for (; i < terms.count; ++i) more += key_of(terms.one(i)) == key;
  return sum_of_lanes(equal) + more;
}

}  // namespace
}  // namespace minerua::isa
