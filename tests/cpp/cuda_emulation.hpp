/// @file cuda_emulation.hpp
/// Runs CUDA kernels on the CPU, line by line as they are: every thread of a block is a coroutine of its own that gives way
/// at __syncthreads(). Blocks run one after the other; between two barriers the threads run in an order that the test
/// chooses, so that a race shows as a result that depends on the order. A barrier that not all threads reach is reported.
/// Include it before the kernel. What it cannot show: warps, alignment traps, limits of registers, and speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
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
#define __launch_bounds__(threads)

inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }

using std::isfinite;
using std::isinf;

struct Extent {
  unsigned x = 0;
};

inline Extent threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Coroutine {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{};
  bool finished = false;
};

constexpr std::size_t stack_bytes = 64 * 1024;

inline ucontext_t scheduler;
inline std::vector<Coroutine> coroutines;
inline std::function<void()> body;

inline void start() {
  const unsigned self = threadIdx.x;
  body();
  coroutines[self].finished = true;
}

inline void prepare(Coroutine& coroutine) {
  getcontext(&coroutine.context);
  if (!coroutine.stack) coroutine.stack.reset(new char[stack_bytes]);
  coroutine.context.uc_stack.ss_sp = coroutine.stack.get();
  coroutine.context.uc_stack.ss_size = stack_bytes;
  coroutine.context.uc_link = &scheduler;
  coroutine.finished = false;
  makecontext(&coroutine.context, start, 0);
}

/// Lets every thread run to its next barrier, or its end; returns how many ended.
inline std::size_t run_to_barrier(const std::vector<unsigned>& order) {
  std::size_t finished = 0;
  for (unsigned thread : order) {
    threadIdx.x = thread;
    swapcontext(&scheduler, &coroutines[thread].context);
    finished += coroutines[thread].finished ? 1 : 0;
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

inline void __syncthreads() {
  const unsigned self = threadIdx.x;
  swapcontext(&emulation::coroutines[self].context, &emulation::scheduler);
}
