/// @file cuda_emulation.hpp
/// Runs CUDA kernels on the CPU, line by line as they are: every thread of a block is a coroutine of its own that gives way
/// at __syncthreads() and __syncwarp(). Blocks run one after the other; between two barriers the threads run in an order that
/// the test chooses, so that a race shows as a result that depends on the order, and a warp runs as far ahead of the others as
/// it may. A barrier that not all threads reach, and a load or store of 16 bytes at an address that is no multiple of 16, are
/// reported. Include it before the kernel. What it cannot show: warps in lockstep, limits of registers, and speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "check.hpp"

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)

inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fdiv_rn(float x, float y) { return x / y; }

using std::fma;
using std::isfinite;
using std::isinf;

struct uint4 {
  std::uint32_t x, y, z, w;
};

inline uint4 make_uint4(std::uint32_t x, std::uint32_t y, std::uint32_t z, std::uint32_t w) { return {x, y, z, w}; }

inline void expect_aligned(const void* address) {
  check::that(reinterpret_cast<std::uintptr_t>(address) % sizeof(uint4) == 0, "16 bytes lie at a multiple of 16");
}

inline uint4 __ldg(const uint4* address) {
  expect_aligned(address);
  uint4 quad;
  std::memcpy(&quad, address, sizeof quad);
  return quad;
}
inline float __ldg(const float* address) { return *address; }

inline void __stcs(uint4* address, const uint4& quad) {
  expect_aligned(address);
  std::memcpy(static_cast<void*>(address), &quad, sizeof quad);
}

/// Threads give way at barriers only, so nothing can come between.
template <class Number>
void atomicAdd(Number* address, Number added) {
  *address += added;
}

struct Extent {
  unsigned x = 0;
};

inline Extent threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

/// Where a thread stands when it is not running.
enum class Place { warp_barrier, block_barrier, end };

struct Coroutine {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{};
  Place place = Place::block_barrier;
};

constexpr unsigned warp_threads = 32;
constexpr std::size_t stack_bytes = 64 * 1024;

inline ucontext_t scheduler;
inline std::vector<Coroutine> coroutines;
inline std::function<void()> body;

inline void start() {
  const unsigned self = threadIdx.x;
  body();
  coroutines[self].place = Place::end;
}

inline void prepare(Coroutine& coroutine) {
  getcontext(&coroutine.context);
  if (!coroutine.stack) coroutine.stack.reset(new char[stack_bytes]);
  coroutine.context.uc_stack.ss_sp = coroutine.stack.get();
  coroutine.context.uc_stack.ss_size = stack_bytes;
  coroutine.context.uc_link = &scheduler;
  coroutine.place = Place::block_barrier;
  makecontext(&coroutine.context, start, 0);
}

inline void resume(unsigned thread) {
  threadIdx.x = thread;
  swapcontext(&scheduler, &coroutines[thread].context);
}

/// Lets the threads of one warp run until all of them stand at a barrier of the block, or at the end.
inline void run_warp(const std::vector<unsigned>& order) {
  for (bool is_at_warp_barrier = true; is_at_warp_barrier;) {
    for (unsigned thread : order) resume(thread);
    const Place place = coroutines[order.front()].place;
    for (unsigned thread : order)
      if (coroutines[thread].place != place) {
        check::that(false, "all threads of a warp meet at the same barriers");
        std::exit(1);  // to go on would resume threads that have ended
      }
    is_at_warp_barrier = place == Place::warp_barrier;
  }
}

/// Lets every thread run to the block's next barrier, or its end; returns how many ended.
inline std::size_t run_to_barrier(const std::vector<unsigned>& order) {
  std::vector<std::vector<unsigned>> warps((order.size() + warp_threads - 1) / warp_threads);
  for (unsigned thread : order) warps[thread / warp_threads].push_back(thread);
  std::vector<bool> has_run(warps.size());
  std::size_t finished = 0;
  for (unsigned thread : order) {
    if (!has_run[thread / warp_threads]) run_warp(warps[thread / warp_threads]);
    has_run[thread / warp_threads] = true;
    finished += coroutines[thread].place == Place::end ? 1 : 0;
  }
  return finished;
}

inline void run_block(std::vector<unsigned>& order, std::mt19937& generator, bool shuffled) {
  for (Coroutine& coroutine : coroutines) prepare(coroutine);
  std::size_t finished = 0;
  while (finished == 0) {
    if (shuffled) std::shuffle(order.begin(), order.end(), generator);
    finished = run_to_barrier(order);
  }
  check::that(finished == order.size(), "all threads of a block meet at the same barriers");
}

inline void wait_at(Place barrier) {
  const unsigned self = threadIdx.x;
  coroutines[self].place = barrier;
  swapcontext(&coroutines[self].context, &scheduler);
}

/// Calls the kernel for every thread of `blocks` blocks; `seed` 0 runs threads in their order, others in random orders.
inline void launch(unsigned blocks, unsigned threads, unsigned seed, const std::function<void()>& kernel) {
  std::mt19937 generator(seed);
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  coroutines.resize(threads);
  body = kernel;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(order, generator, seed != 0);
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_at(emulation::Place::block_barrier); }
inline void __syncwarp() { emulation::wait_at(emulation::Place::warp_barrier); }
