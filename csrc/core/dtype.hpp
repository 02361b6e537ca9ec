/// @file dtype.hpp
/// The three element types of the core, and their exact conversions to and from float.
///
/// Every function is `static inline` on purpose: the same header is compiled for several instruction sets, and internal
/// linkage keeps a copy made for AVX-512 from being the one that an older machine runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MINERUA_HOST_DEVICE __host__ __device__
#else
#define MINERUA_HOST_DEVICE
#endif

namespace minerua {

/// Element types; the numbers are part of the C ABI of libminerua_cuda.so.
enum class DType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

inline constexpr int dtype_count = 3;

/// Bytes of one element.
MINERUA_HOST_DEVICE static inline constexpr std::size_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

MINERUA_HOST_DEVICE static inline float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

MINERUA_HOST_DEVICE static inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// bfloat16 is the upper half of a float: exact, NaN payloads kept.
MINERUA_HOST_DEVICE static inline float float_from_bfloat16(std::uint16_t half) {
  return float_from_bits(static_cast<std::uint32_t>(half) << 16);
}

/// Rounds to nearest, ties to even; overflow gives infinity, NaN stays a (quiet) NaN, denormals are kept.
MINERUA_HOST_DEVICE static inline std::uint16_t bfloat16_from_float(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t nan = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(is_nan ? nan : rounded);
}

/// float16 to float: exact. Denormals are converted through an integer, so that a caller who flushes float denormals to
/// zero (torch.set_flush_denormal) still gets the right value.
MINERUA_HOST_DEVICE static inline float float_from_float16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t special = (magnitude << 13) | 0x7f800000u;
  const float tiny = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
  const std::uint32_t large = magnitude >= 0x7c00u ? special : normal;
  const std::uint32_t bits = magnitude < 0x0400u ? bits_of_float(tiny) : large;
  return float_from_bits(sign | bits);
}

/// Rounds to nearest, ties to even; from 65520 on gives infinity, NaN stays a (quiet) NaN, denormals are kept.
MINERUA_HOST_DEVICE static inline std::uint16_t float16_from_float(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t shifted = magnitude - (112u << 23);
  const std::uint32_t normal = (shifted + 0xfffu + ((shifted >> 13) & 1u)) >> 13;
  // The step of floats in [0.5, 1) is the step of float16 denormals, 2^-24: the addition rounds, the rest is an integer.
  const std::uint32_t small = magnitude < 0x38800000u ? magnitude : 0u;
  const std::uint32_t tiny = bits_of_float(float_from_bits(small) + 0.5f) - 0x3f000000u;
  const std::uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  const std::uint32_t finite = magnitude < 0x38800000u ? tiny : normal;
  const std::uint32_t bounded = magnitude >= 0x477ff000u ? 0x7c00u : finite;
  return static_cast<std::uint16_t>(sign | (magnitude > 0x7f800000u ? nan : bounded));
}

/// How one element type is stored, and how it meets float.
template <DType dtype>
struct Element;

template <>
struct Element<DType::float32> {
  using Storage = float;
  MINERUA_HOST_DEVICE static float load(Storage stored) { return stored; }
  MINERUA_HOST_DEVICE static Storage store(float value) { return value; }
};

template <>
struct Element<DType::float16> {
  using Storage = std::uint16_t;
  MINERUA_HOST_DEVICE static float load(Storage stored) { return float_from_float16(stored); }
  MINERUA_HOST_DEVICE static Storage store(float value) { return float16_from_float(value); }
};

template <>
struct Element<DType::bfloat16> {
  using Storage = std::uint16_t;
  MINERUA_HOST_DEVICE static float load(Storage stored) { return float_from_bfloat16(stored); }
  MINERUA_HOST_DEVICE static Storage store(float value) { return bfloat16_from_float(value); }
};

}  // namespace minerua
