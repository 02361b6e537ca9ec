/// @file conversions.hpp
/// Sixteen elements of any type to and from float, with the bits of dtype.hpp. Included only by the files of this folder,
/// inside their instruction set.
///
/// With intrinsics where the machine has instructions that GCC 12 does not find by itself: it leaves float16 scalar, 1.3 ns
/// an element instead of 0.1, and narrows bfloat16 through general shuffles (measured 2026-11-22).
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// Elements that one conversion takes.
constexpr std::size_t lanes = 16;

typedef std::uint32_t Words __attribute__((vector_size(native_bytes)));
typedef std::uint16_t Halves __attribute__((vector_size(native_bytes / 2)));

/// As many halves as there are words in a native vector, each in a word of its own. GCC 12 would load them twice.
inline Words widened_halves(const std::uint16_t* source) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#else
  Halves halves;
  __builtin_memcpy(&halves, source, sizeof halves);
  return __builtin_convertvector(halves, Words);
#endif
}

/// The upper halves of sixteen words, in order.
inline void store_upper(const Words (&words)[Floats::parts], std::uint16_t* target) {
#if defined(__AVX512F__)
  // The form with a mask (of ones): GCC 12 warns of its own header's undefined register in the plain one.
  const __m256i halves = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)(words[0] >> 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), halves);
#elif defined(__AVX2__)
  // The pack works within 128 bits: its quarters come out in the order 0, 2, 1, 3.
  const __m256i low = _mm256_srai_epi32((__m256i)words[0], 16), high = _mm256_srai_epi32((__m256i)words[1], 16);
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), halves);
#elif defined(__SSE2__)
  for (std::size_t i = 0; i < Floats::parts; i += 2) {
    const __m128i low = _mm_srai_epi32((__m128i)words[i], 16), high = _mm_srai_epi32((__m128i)words[i + 1], 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target) + i / 2, _mm_packs_epi32(low, high));
  }
#else
  for (std::size_t i = 0; i < Floats::parts; ++i) {
    const Halves halves = __builtin_convertvector(words[i] >> 16, Halves);
    __builtin_memcpy(target + i * Floats::width, &halves, sizeof halves);
  }
#endif
}

template <DType dtype>
struct Conversion;

template <>
struct Conversion<DType::float32> {
  static inline Floats load(const float* source) { return Floats::load(source); }
  static inline void store(const Floats& group, float* target) { group.store(target); }
};

template <>
struct Conversion<DType::bfloat16> {
  static inline Floats load(const std::uint16_t* source) {
    Floats group;
#pragma GCC unroll 16
    for (std::size_t i = 0; i < Floats::parts; ++i)
      group.part[i] = (Floats::Native)(widened_halves(source + i * Floats::width) << 16);
    return group;
  }

  static inline void store(const Floats& group, std::uint16_t* target) {
    Words words[Floats::parts];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < Floats::parts; ++i) {
      const Words bits = (Words)group.part[i];
      const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u), quiet = bits | 0x400000u;
      words[i] = group.part[i] != group.part[i] ? quiet : rounded;
    }
    store_upper(words, target);
  }
};

#if defined(__AVX512F__)

template <>
struct Conversion<DType::float16> {
  static inline Floats load(const std::uint16_t* source) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    return {{(Floats::Native)_mm512_maskz_cvtph_ps(0xffff, halves)}};
  }

  static inline void store(const Floats& group, std::uint16_t* target) {
    const auto values = (__m512)group.part[0];
    const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), halves);
  }
};

#elif defined(__F16C__)

template <>
struct Conversion<DType::float16> {
  static inline Floats load(const std::uint16_t* source) {
    const auto* const halves = reinterpret_cast<const __m128i*>(source);
    return {{(Floats::Native)_mm256_cvtph_ps(_mm_loadu_si128(halves)),
             (Floats::Native)_mm256_cvtph_ps(_mm_loadu_si128(halves + 1))}};
  }

  static inline void store(const Floats& group, std::uint16_t* target) {
    auto* const halves = reinterpret_cast<__m128i*>(target);
    _mm_storeu_si128(halves, _mm256_cvtps_ph((__m256)group.part[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph((__m256)group.part[1], _MM_FROUND_TO_NEAREST_INT));
  }
};

#else

template <>
struct Conversion<DType::float16> {
  static inline Floats load(const std::uint16_t* source) {
    float values[lanes];
    for (std::size_t i = 0; i < lanes; ++i) values[i] = float_from_float16(source[i]);
    return Floats::load(values);
  }

  static inline void store(const Floats& group, std::uint16_t* target) {
    float values[lanes];
    group.store(values);
    for (std::size_t i = 0; i < lanes; ++i) target[i] = float16_from_float(values[i]);
  }
};

#endif

}  // namespace
}  // namespace minerua::isa
