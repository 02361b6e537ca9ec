/// @file vectors.hpp
/// Vectors of the width that the instruction set at hand has, in groups of a fixed number of lanes. Included only by the
/// files of this folder, inside their instruction set.
///
/// A group is spelled out as native vectors, because GCC lowers vector types wider than the machine through memory (five
/// times slower on AVX2, measured 2026-11-22 with GCC 12).
#pragma once

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

/// The written order of every sum of eight lanes.
inline double sum_of(const Doubles& lanes) {
  const double even = (lanes.lane(0) + lanes.lane(4)) + (lanes.lane(2) + lanes.lane(6));
  const double odd = (lanes.lane(1) + lanes.lane(5)) + (lanes.lane(3) + lanes.lane(7));
  return even + odd;
}

}  // namespace
}  // namespace minerua::isa
