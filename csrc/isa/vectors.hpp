/// @file vectors.hpp
/// Vectors of the width that the instruction set at hand has, in groups of a fixed number of lanes. Included only by the
/// files of this folder, inside their instruction set.
///
/// A group is spelled out as native vectors, because GCC lowers vector types wider than the machine through memory (five
/// times slower on AVX2, measured 2026-11-22 with GCC 12).
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstddef>

namespace minerua::isa {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t native_bytes = 64;
#elif defined(__AVX__)
constexpr std::size_t native_bytes = 32;
#else
constexpr std::size_t native_bytes = 16;
#endif

/// `count` numbers in native vectors; loads and stores need no alignment.
template <class T, std::size_t count>
struct Group {
  typedef T Native __attribute__((vector_size(native_bytes)));
  static constexpr std::size_t width = native_bytes / sizeof(T);
  static constexpr std::size_t parts = count / width;
  Native part[parts];

  static inline __attribute__((always_inline)) Group load(const T* source) {
    Group group;
#pragma GCC unroll 16
    for (std::size_t i = 0; i < parts; ++i) __builtin_memcpy(&group.part[i], source + i * width, native_bytes);
    return group;
  }

  inline __attribute__((always_inline)) void store(T* target) const {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < parts; ++i) __builtin_memcpy(target + i * width, &part[i], native_bytes);
  }

  inline __attribute__((always_inline)) T lane(std::size_t i) const { return part[i / width][i % width]; }

  inline __attribute__((always_inline)) Group& operator+=(const Group& other) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < parts; ++i) part[i] = part[i] + other.part[i];
    return *this;
  }

  inline __attribute__((always_inline)) Group& operator-=(const Group& other) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < parts; ++i) part[i] = part[i] - other.part[i];
    return *this;
  }

  friend inline __attribute__((always_inline)) Group operator*(T factor, const Group& group) {
    Group result;
#pragma GCC unroll 16
    for (std::size_t i = 0; i < parts; ++i) result.part[i] = factor * group.part[i];
    return result;
  }

  friend inline __attribute__((always_inline)) Group operator*(const Group& x, const Group& y) {
    Group result;
#pragma GCC unroll 16
    for (std::size_t i = 0; i < parts; ++i) result.part[i] = x.part[i] * y.part[i];
    return result;
  }

  friend inline __attribute__((always_inline)) Group operator+(Group x, const Group& y) { return x += y; }
  friend inline __attribute__((always_inline)) Group operator-(Group x, const Group& y) { return x -= y; }
};

using Doubles = Group<double, 8>;
using Floats = Group<float, 16>;

/// A cache line of numbers.
template <class Real>
using Line = Group<Real, 64 / sizeof(Real)>;

/// x · y + z, rounded once. Every machine gives these bits; one that lacks the instruction (the baseline on x86) takes long.
inline Floats::Native fused(const Floats::Native& x, const Floats::Native& y, const Floats::Native& z) {
#if defined(__AVX512F__)
  return (Floats::Native)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__FMA__)
  return (Floats::Native)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#else
  Floats::Native sum;
  for (std::size_t lane = 0; lane < Floats::width; ++lane) sum[lane] = __builtin_fmaf(x[lane], y[lane], z[lane]);
  return sum;
#endif
}

inline Doubles::Native fused(const Doubles::Native& x, const Doubles::Native& y, const Doubles::Native& z) {
#if defined(__AVX512F__)
  return (Doubles::Native)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
#elif defined(__FMA__)
  return (Doubles::Native)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
#else
  Doubles::Native sum;
  for (std::size_t lane = 0; lane < Doubles::width; ++lane) sum[lane] = __builtin_fma(x[lane], y[lane], z[lane]);
  return sum;
#endif
}

template <class T, std::size_t count>
inline __attribute__((always_inline)) Group<T, count> multiply_add(const Group<T, count>& x, const Group<T, count>& y,
                                                                   const Group<T, count>& z) {
  Group<T, count> sum;
#pragma GCC unroll 16
  for (std::size_t i = 0; i < Group<T, count>::parts; ++i) sum.part[i] = fused(x.part[i], y.part[i], z.part[i]);
  return sum;
}

template <class T, std::size_t count>
inline __attribute__((always_inline)) Group<T, count> multiply_add(T factor, const Group<T, count>& y,
                                                                   const Group<T, count>& z) {
  // Less zero, not plus zero: that would be an addition, because it turns -0 into 0.
  const typename Group<T, count>::Native everywhere = factor - typename Group<T, count>::Native{};
  Group<T, count> sum;
#pragma GCC unroll 16
  for (std::size_t i = 0; i < Group<T, count>::parts; ++i) sum.part[i] = fused(everywhere, y.part[i], z.part[i]);
  return sum;
}

/// The written order of every sum of lanes: the upper half is added to the lower, until one is left.
template <class T, std::size_t count>
inline T sum_of(const Group<T, count>& lanes) {
  T sums[count];
  lanes.store(sums);
#pragma GCC unroll 16
  for (std::size_t half = count / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

}  // namespace
}  // namespace minerua::isa
