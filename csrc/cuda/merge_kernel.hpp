/// @file merge_kernel.hpp
/// The device code of `merge`: one thread holds a packet of up to 16 bytes of every expert and writes all children of it.
///
/// Without the toolkit's headers, so that tests/cpp can run these very lines on the CPU (tests/cpp/cuda_emulation.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/capi.h"

namespace minerua::cuda {
namespace {

constexpr int merge_threads = 256;

/// Experts whose values one thread keeps in registers; more are read again for every child, from cache.
constexpr int resident_experts = 8;

struct Experts {
  const void* data[MINERUA_CUDA_MAX_EXPERTS];
};

struct MergeRequest {
  Experts experts;
  int expert_count;
  const void* base;
  const float* coefficients;
  int children;
  std::int64_t size;
  void* out;
};

template <class Storage, int lanes>
struct alignas(sizeof(Storage) * lanes) Packet {
  Storage item[lanes];
};

template <DType dtype, int lanes>
__device__ void load(const void* data, std::int64_t first, float (&values)[lanes]) {
  using Storage = typename Element<dtype>::Storage;
  const auto packet = *reinterpret_cast<const Packet<Storage, lanes>*>(static_cast<const Storage*>(data) + first);
#pragma unroll
  for (int i = 0; i < lanes; ++i) values[i] = Element<dtype>::load(packet.item[i]);
}

template <DType dtype, int lanes>
__device__ void store(void* data, std::int64_t first, const float (&values)[lanes]) {
  using Storage = typename Element<dtype>::Storage;
  Packet<Storage, lanes> packet;
#pragma unroll
  for (int i = 0; i < lanes; ++i) packet.item[i] = Element<dtype>::store(values[i]);
  *reinterpret_cast<Packet<Storage, lanes>*>(static_cast<Storage*>(data) + first) = packet;
}

/// sums += c (x - base), or starts the sum; __fmul_rn and __fadd_rn are never contracted, so the bits are the CPU's.
template <int lanes>
__device__ void add_term(float c, const float (&term)[lanes], bool starts, float (&sums)[lanes]) {
#pragma unroll
  for (int i = 0; i < lanes; ++i) {
    const float product = __fmul_rn(c, term[i]);
    sums[i] = starts ? product : __fadd_rn(sums[i], product);
  }
}

template <DType dtype, int lanes>
__device__ void load_term(const MergeRequest& request, int k, std::int64_t first, const float (&base)[lanes],
                          float (&term)[lanes]) {
  load<dtype, lanes>(request.experts.data[k], first, term);
  if (request.base == nullptr) return;
#pragma unroll
  for (int i = 0; i < lanes; ++i) term[i] = __fsub_rn(term[i], base[i]);
}

template <DType from, DType start, DType to, int lanes>
__device__ void merge_packet(const MergeRequest& request, std::int64_t first) {
  float base[lanes] = {};
  if (request.base != nullptr) load<start, lanes>(request.base, first, base);
  float resident[resident_experts][lanes];
#pragma unroll
  for (int k = 0; k < resident_experts; ++k)
    if (k < request.expert_count) load_term<from, lanes>(request, k, first, base, resident[k]);
  for (int p = 0; p < request.children; ++p) {
    const float* const c = request.coefficients + static_cast<std::int64_t>(p) * request.expert_count;
    float sums[lanes];
#pragma unroll
    for (int i = 0; i < lanes; ++i) sums[i] = base[i];
#pragma unroll
    for (int k = 0; k < resident_experts; ++k)
      if (k < request.expert_count) add_term<lanes>(c[k], resident[k], k == 0 && request.base == nullptr, sums);
    for (int k = resident_experts; k < request.expert_count; ++k) {
      float term[lanes];
      load_term<from, lanes>(request, k, first, base, term);
      add_term<lanes>(c[k], term, false, sums);
    }
    store<to, lanes>(request.out, p * request.size + first, sums);
  }
}

/// Packets first, then the elements that fill no packet, one by one.
template <DType from, DType start, DType to, int lanes>
__global__ void __launch_bounds__(merge_threads) merge_kernel(const __grid_constant__ MergeRequest request) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t packets = request.size / lanes;
  for (std::int64_t i = thread; i < packets; i += step)
    merge_packet<from, start, to, lanes>(request, i * lanes);
  for (std::int64_t i = packets * lanes + thread; i < request.size; i += step)
    merge_packet<from, start, to, 1>(request, i);
}

/// Elements of the wider of the types in 16 bytes: a packet of a narrower type is then 8 bytes wide.
template <DType from, DType start, DType to>
constexpr int packet_lanes() {
  return size_of(from) + size_of(start) + size_of(to) == 6 ? 8 : 4;
}

bool is_aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

template <int lanes>
bool fits_packets(const MergeRequest& request, DType from, DType start, DType to) {
  bool fits = is_aligned(request.out, lanes * size_of(to)) && is_aligned(request.base, lanes * size_of(start));
  fits = fits && (request.children == 1 || request.size % lanes == 0);  // every child's first element is aligned too
  for (int k = 0; k < request.expert_count; ++k)
    fits = fits && is_aligned(request.experts.data[k], lanes * size_of(from));
  return fits;
}

}  // namespace
}  // namespace minerua::cuda
