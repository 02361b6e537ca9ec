/// @file pass_terms.hpp
/// What the device code of all passes begins with: eight neighbouring elements of a source, read in one or two loads of 16
/// bytes where the address allows, widened to floats, less the base.
///
/// The element type is looked up at run time, by all threads of a block alike: one kernel takes any mixture of types, and
/// the loads of several sources are under way before the first is looked at.
///
/// Without the toolkit's headers, so that tests/cpp can run these very lines on the CPU (tests/cpp/cuda_emulation.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/capi.h"

namespace minerua::cuda {
namespace {

constexpr int pass_threads = 256;

/// Elements that one thread takes at once.
constexpr int pass_lanes = 8;

/// Sources whose loads are under way together.
constexpr int sources_ahead = 4;

using Lanes = float[pass_lanes];

struct alignas(16) Quad {
  std::uint32_t word[4];
};

/// Elements as stored: 16-bit ones two to a word in `low`, floats in `low` and `high`. Zeros where there are none.
struct Raw {
  Quad low, high;
};

/// Up to pass_lanes elements of a tensor from `first` on; none if `count` is 0.
struct Run {
  std::int64_t first;
  int count;
};

__device__ inline Run run_at(std::int64_t first, std::int64_t end) {
  const std::int64_t left = end - first;
  return {first, static_cast<int>(left < 0 ? 0 : left < pass_lanes ? left : pass_lanes)};
}

/// The conversion instruction, because fifteen others would take longer than the memory does. NaN payloads are its own.
__device__ inline float widened_float16(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  return float_from_float16(bits);
#endif
}

__device__ inline std::uint16_t narrowed_float16(float value) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  return float16_from_float(value);
#endif
}

__device__ inline bool is_packet(const void* address, int count) {
  return count == pass_lanes && reinterpret_cast<std::uintptr_t>(address) % sizeof(Quad) == 0;
}

__device__ inline Quad load_quad(const void* address) {
  const uint4 quad = __ldg(static_cast<const uint4*>(address));
  return {{quad.x, quad.y, quad.z, quad.w}};
}

__device__ inline void store_quad(void* address, const Quad& quad) {
  __stcs(static_cast<uint4*>(address), make_uint4(quad.word[0], quad.word[1], quad.word[2], quad.word[3]));
}

__device__ inline Raw load_floats(const float* stored, int count) {
  if (is_packet(stored, count)) return {load_quad(stored), load_quad(stored + 4)};
  Raw raw{};
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i)
    if (i < count) (i < 4 ? raw.low : raw.high).word[i % 4] = bits_of_float(stored[i]);
  return raw;
}

__device__ inline Raw load_halves(const std::uint16_t* stored, int count) {
  if (is_packet(stored, count)) return {load_quad(stored), {}};
  Raw raw{};
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i)
    if (i < count) raw.low.word[i / 2] |= static_cast<std::uint32_t>(stored[i]) << i % 2 * 16;
  return raw;
}

__device__ inline Raw load_raw(const minerua_source& source, const Run& run) {
  if (source.dtype == MINERUA_FLOAT32) return load_floats(static_cast<const float*>(source.data) + run.first, run.count);
  return load_halves(static_cast<const std::uint16_t*>(source.data) + run.first, run.count);
}

__device__ inline std::uint16_t half_at(const Raw& raw, int i) {
  return static_cast<std::uint16_t>(raw.low.word[i / 2] >> i % 2 * 16);
}

/// The type is asked for once, not for every lane.
__device__ inline void widen(int dtype, const Raw& raw, Lanes& values) {
  if (dtype == MINERUA_FLOAT32) {
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) values[i] = float_from_bits((i < 4 ? raw.low : raw.high).word[i % 4]);
  } else if (dtype == MINERUA_FLOAT16) {
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) values[i] = widened_float16(half_at(raw, i));
  } else {
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) values[i] = float_from_bfloat16(half_at(raw, i));
  }
}

/// Adds the low-rank factors' products, one after another in the order of rank.
__device__ inline void add_factors(const minerua_source& source, std::int64_t columns, const Run& run, Lanes& values) {
  for (int i = 0; i < run.count; ++i) {
    const std::int64_t row = (run.first + i) / columns, column = (run.first + i) % columns;
    float sum = 0.0f;
#pragma unroll
    for (int lane = 0; lane < pass_lanes; ++lane) sum = lane == i ? values[lane] : sum;  // an index would spill `values`
    for (int r = 0; r < source.rank; ++r)
      sum = __fadd_rn(sum, __fmul_rn(source.left[row * source.rank + r], source.right[r * columns + column]));
#pragma unroll
    for (int lane = 0; lane < pass_lanes; ++lane) values[lane] = lane == i ? sum : values[lane];
  }
}

/// The elements that are meant: what is stored, and the factors' products.
__device__ inline void finish_values(const minerua_source& source, std::int64_t columns, const Run& run, const Raw& raw,
                                     Lanes& values) {
  widen(source.dtype, raw, values);
  if (source.left != nullptr) add_factors(source, columns, run, values);
}

__device__ inline void subtract(const Lanes& base, Lanes& values) {
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) values[i] = __fsub_rn(values[i], base[i]);
}

/// Elements of source k of a tensor less its base.
__device__ inline void load_terms(const minerua_pass& pass, const minerua_tensor& tensor, int k, const Run& run,
                                  Lanes& terms) {
  const minerua_source source = pass.sources[tensor.first_source + k];
  const Raw raw = load_raw(source, run);
  if (!tensor.has_base) return finish_values(source, tensor.columns, run, raw, terms);
  const minerua_source start = pass.sources[tensor.first_source + tensor.source_count];
  const Raw raw_base = load_raw(start, run);
  Lanes base;
  finish_values(source, tensor.columns, run, raw, terms);
  finish_values(start, tensor.columns, run, raw_base, base);
  subtract(base, terms);
}

/// The 31 bits of a magnitude, which order as magnitudes do.
__device__ inline std::uint32_t key_of(float value) { return bits_of_float(value) & 0x7fffffffu; }

/// Adds to `counter` how many of the values are not finite: next to never any, so that it costs a comparison.
__device__ inline void count_not_finite(const Lanes& values, int count, std::int64_t* counter) {
  int found = 0;
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) found += i < count && key_of(values[i]) >= 0x7f800000u ? 1 : 0;
  if (found != 0) atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(found));
}

__device__ inline std::uint16_t narrowed(int dtype, float value) {
  return dtype == MINERUA_FLOAT16 ? narrowed_float16(value) : bfloat16_from_float(value);
}

__device__ inline void store_floats(float* out, const Lanes& values, int count) {
  Raw raw;
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) (i < 4 ? raw.low : raw.high).word[i % 4] = bits_of_float(values[i]);
  if (is_packet(out, count)) {
    store_quad(out, raw.low);
    return store_quad(out + 4, raw.high);
  }
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i)
    if (i < count) out[i] = values[i];
}

__device__ inline void store_halves(std::uint16_t* out, const std::uint16_t (&halves)[pass_lanes], int count) {
  if (is_packet(out, count)) {
    Quad quad;
#pragma unroll
    for (int w = 0; w < 4; ++w) quad.word[w] = halves[2 * w] | static_cast<std::uint32_t>(halves[2 * w + 1]) << 16;
    return store_quad(out, quad);
  }
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i)
    if (i < count) out[i] = halves[i];
}

/// Rounds and writes results, and adds to `counter` how many of them, as rounded, are not finite.
__device__ inline void store_results(const minerua_tensor& tensor, const Run& run, Lanes& values, std::int64_t* counter) {
  if (tensor.out_dtype == MINERUA_FLOAT32) {
    store_floats(static_cast<float*>(tensor.out) + run.first, values, run.count);
  } else {
    std::uint16_t halves[pass_lanes];
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) {
      halves[i] = narrowed(tensor.out_dtype, values[i]);
      values[i] = tensor.out_dtype == MINERUA_FLOAT16 ? widened_float16(halves[i]) : float_from_bfloat16(halves[i]);
    }
    store_halves(static_cast<std::uint16_t*>(tensor.out) + run.first, halves, run.count);
  }
  count_not_finite(values, run.count, counter);
}

/// The loads of up to sources_ahead sources. Of their descriptions only what registers can afford: the type, and whether
/// there are factors; those are looked up again.
struct Ahead {
  int dtype[sources_ahead];
  bool has_factors[sources_ahead];
  Raw raw[sources_ahead];
};

__device__ inline void load_ahead(const minerua_pass& pass, const minerua_tensor& tensor, int first, const Run& run,
                                  Ahead& ahead) {
#pragma unroll
  for (int j = 0; j < sources_ahead; ++j)
    if (first + j < tensor.source_count) {
      const minerua_source& source = pass.sources[tensor.first_source + first + j];
      ahead.dtype[j] = source.dtype;
      ahead.has_factors[j] = source.left != nullptr;
      ahead.raw[j] = load_raw(source, run);
    }
}

/// The elements of source first + j, which was loaded ahead.
__device__ inline void finish_ahead(const minerua_pass& pass, const minerua_tensor& tensor, const Ahead& ahead, int first,
                                    int j, const Run& run, Lanes& values) {
  widen(ahead.dtype[j], ahead.raw[j], values);
  if (ahead.has_factors[j])
    add_factors(pass.sources[tensor.first_source + first + j], tensor.columns, run, values);
}

/// Sums over a block, each in the same fixed tree; all threads get them. `memory` is the block's: a double for each sum and
/// thread.
template <int sums>
__device__ void block_sums(double (&values)[sums], double* memory) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  __syncthreads();
#pragma unroll
  for (int s = 0; s < sums; ++s) memory[s * threads + thread] = values[s];
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (thread < half)
#pragma unroll
      for (int s = 0; s < sums; ++s) memory[s * threads + thread] += memory[s * threads + thread + half];
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < sums; ++s) values[s] = memory[s * threads];
}

__device__ inline double block_sum(double value, double* memory) {
  double values[1] = {value};
  block_sums(values, memory);
  return values[0];
}

/// Bytes of shared memory that so many sums over a block take.
constexpr int sums_shared_bytes(int sums, int threads) { return sums * threads * static_cast<int>(sizeof(double)); }

}  // namespace
}  // namespace minerua::cuda
