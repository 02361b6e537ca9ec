/// @file select_kernel.hpp
/// The device code of `histogram`, `select_largest` and `count_equal`: magnitudes are counted by the upper 15 bits of their
/// keys, then by the lower 16 bits of those that matter; what is wanted of equal ones ends at an index, the cut.
#pragma once

#include "cuda/pass_terms.hpp"

namespace minerua::cuda {
namespace {

constexpr int histogram_threads = 512;
constexpr int upper_bins = 1 << 15, lower_bins = 1 << 16;

/// Bins that a block counts in shared memory, 64 KiB: three blocks fit on an H100, two on an A100, one on an RTX 4090. Upper
/// halves below it are magnitudes below 2, as nearly all weights and task vectors are; of lower halves it is the multiples
/// of 4, where differences of 16-bit numbers crowd. The others are counted in global memory at once.
constexpr int shared_bins = 1 << 14;
constexpr int histogram_shared_bytes = shared_bins * static_cast<int>(sizeof(unsigned));

/// The key that no number has: nothing is wanted.
constexpr std::uint32_t no_key = 1u << 31;

struct HistogramRequest {
  minerua_pass pass;
  const minerua_selection* selections;
  std::int64_t* counts;
};

__device__ inline void add_count(std::int64_t* counter, std::uint64_t count) {
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(count));
}

/// How keys fall into bins, and which bins are in shared memory.
template <bool is_lower>
struct Binning {
  std::uint32_t prefix;

  __device__ bool takes(std::uint32_t key) const { return !is_lower || key >> 16 == prefix; }
  __device__ std::uint32_t bin_of(std::uint32_t key) const { return is_lower ? key & 0xffffu : key >> 16; }
  __device__ bool is_shared(std::uint32_t bin) const { return is_lower ? bin % 4 == 0 : bin < shared_bins; }
  __device__ std::uint32_t slot_of(std::uint32_t bin) const { return is_lower ? bin / 4 : bin; }
  __device__ std::uint32_t bin_at(std::uint32_t slot) const { return is_lower ? slot * 4 : slot; }
};

/// Counts the keys of a run. Those of bin 0, which every unchanged weight falls into, are added to `zeros`: in shared memory
/// a whole warp would queue for them.
template <bool is_lower>
__device__ void count_run(const Binning<is_lower>& binning, const Lanes& terms, int count, unsigned* shared,
                          std::int64_t* bins, unsigned& zeros) {
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) {
    const std::uint32_t key = key_of(terms[i]), bin = binning.bin_of(key);
    if (i >= count || !binning.takes(key)) continue;
    if (bin == 0)
      ++zeros;
    else if (binning.is_shared(bin))
      atomicAdd(shared + binning.slot_of(bin), 1u);
    else
      add_count(bins + bin, 1);
  }
}

/// A block for every piece and source; those of one piece are neighbours, so that they find its base in the L2 cache.
template <bool is_lower>
__global__ void __launch_bounds__(histogram_threads) histogram_kernel(const __grid_constant__ HistogramRequest request) {
  extern __shared__ double block_memory[];
  auto* const shared = reinterpret_cast<unsigned*>(block_memory);
  const auto most = static_cast<unsigned>(request.pass.most_sources);
  const minerua_piece piece = request.pass.pieces[blockIdx.x / most];
  const minerua_tensor tensor = request.pass.tensors[piece.tensor];
  const int k = static_cast<int>(blockIdx.x % most);
  if (k >= tensor.source_count) return;
  const std::int64_t row = tensor.first_result + k;
  const Binning<is_lower> binning{is_lower ? request.selections[row].key >> 16 : 0};
  std::int64_t* const bins = request.counts + row * (is_lower ? lower_bins : upper_bins);
  for (int slot = threadIdx.x; slot < shared_bins; slot += histogram_threads) shared[slot] = 0;
  __syncthreads();
  unsigned zeros = 0;
  const std::int64_t end = piece.begin + piece.count, step = histogram_threads * pass_lanes;
  for (std::int64_t first = piece.begin + threadIdx.x * pass_lanes; first < end; first += step) {
    Lanes terms;
    load_terms(request.pass, tensor, k, run_at(first, end), terms);
    count_run<is_lower>(binning, terms, run_at(first, end).count, shared, bins, zeros);
  }
  if (zeros != 0) atomicAdd(shared, zeros);
  __syncthreads();
  for (int slot = threadIdx.x; slot < shared_bins; slot += histogram_threads)
    if (shared[slot] != 0) add_count(bins + binning.bin_at(static_cast<std::uint32_t>(slot)), shared[slot]);
}

// ── where counts reach a number ──────────────────────────────────────────────────────────────────────────────────────

/// The first index up to which the counts add up to what is wanted, and what those before it add up to; behind the end if
/// there are fewer.
struct Found {
  std::int64_t index, before;
};

/// Every thread adds up a stretch of its own, the first thread looks for the stretch, and then within it. All threads get
/// the answer. `memory` is the block's, a 64-bit number for each thread and one more for the answer's two each.
template <class CountAt>
__device__ Found locate(const CountAt& count_at, std::int64_t size, std::int64_t wanted, std::int64_t* memory) {
  const std::int64_t stretch = (size + pass_threads - 1) / pass_threads;
  std::int64_t own = 0;
  for (std::int64_t i = threadIdx.x * stretch; i < size && i < (threadIdx.x + 1) * stretch; ++i) own += count_at(i);
  __syncthreads();
  memory[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    std::int64_t before = 0, index = 0;
    int part = 0;
    for (; part < pass_threads && before + memory[part] < wanted; ++part) before += memory[part];
    for (index = part * stretch; index < size; ++index) {
      const std::int64_t here = count_at(index);
      if (before + here >= wanted) break;
      before += here;
    }
    memory[pass_threads] = index < size ? index : size;
    memory[pass_threads + 1] = before;
  }
  __syncthreads();
  return {memory[pass_threads], memory[pass_threads + 1]};
}

constexpr int locate_shared_bytes = (pass_threads + 2) * static_cast<int>(sizeof(std::int64_t));

struct NarrowRequest {
  minerua_selection* selections;
  const std::int64_t* counts;
};

/// A block for each selection; bins are gone through from the largest magnitudes down.
template <bool is_lower>
__global__ void __launch_bounds__(pass_threads) narrow_kernel(const __grid_constant__ NarrowRequest request) {
  extern __shared__ double block_memory[];
  auto* const memory = reinterpret_cast<std::int64_t*>(block_memory);
  constexpr std::int64_t size = is_lower ? lower_bins : upper_bins;
  const minerua_selection given = request.selections[blockIdx.x];
  if (is_lower && given.key == no_key) return;
  const std::int64_t* const bins = request.counts + blockIdx.x * size;
  const Found found =
      locate([=](std::int64_t i) { return bins[size - 1 - i]; }, size, given.remaining, memory);
  if (threadIdx.x != 0) return;
  minerua_selection& narrowed = request.selections[blockIdx.x];
  const auto bin = static_cast<std::uint32_t>(size - 1 - found.index);
  narrowed.key = given.remaining == 0 ? no_key : is_lower ? given.key | bin : bin << 16;
  narrowed.remaining = given.remaining - found.before;
}

// ── equal keys ───────────────────────────────────────────────────────────────────────────────────────────────────────

struct EqualRequest {
  minerua_pass pass;
  const minerua_place* places;
  std::int64_t* counts;
};

/// A block for each piece of a place.
__global__ void __launch_bounds__(pass_threads) count_equal_kernel(const __grid_constant__ EqualRequest request) {
  extern __shared__ double block_memory[];
  const minerua_piece piece = request.pass.pieces[blockIdx.x];
  const minerua_place place = request.places[piece.tensor];
  const minerua_tensor tensor = request.pass.tensors[place.tensor];
  const std::int64_t end = piece.begin + piece.count, step = static_cast<std::int64_t>(blockDim.x) * pass_lanes;
  int found = 0;
  for (std::int64_t first = piece.begin + threadIdx.x * pass_lanes; first < end; first += step) {
    const Run run = run_at(first, end);
    Lanes terms;
    load_terms(request.pass, tensor, place.source, run, terms);
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) found += i < run.count && key_of(terms[i]) == place.key ? 1 : 0;
  }
  const double sum = block_sum(found, block_memory);  // exact: a piece has fewer than 2^53 elements
  if (threadIdx.x == 0) request.counts[blockIdx.x] = static_cast<std::int64_t>(sum);
}

struct CutRequest {
  minerua_pass pass;
  const minerua_place* places;
  const std::int64_t* counts;
  minerua_mask* masks;
};

/// A block for each place: the piece in which the budget of equal keys ends, then the element.
__global__ void __launch_bounds__(pass_threads) cut_ties_kernel(const __grid_constant__ CutRequest request) {
  extern __shared__ double block_memory[];
  auto* const memory = reinterpret_cast<std::int64_t*>(block_memory);
  const minerua_place place = request.places[blockIdx.x];
  const minerua_tensor tensor = request.pass.tensors[place.tensor];
  const std::int64_t* const counts = request.counts + place.first_piece;
  const Found in = locate([=](std::int64_t p) { return counts[p]; }, place.piece_count, place.equal, memory);
  std::int64_t cut = tensor.size;
  if (in.index < place.piece_count) {  // the same for all threads
    const minerua_piece piece = request.pass.pieces[place.first_piece + in.index];
    const auto is_equal = [&](std::int64_t i) -> std::int64_t {
      Lanes terms;
      load_terms(request.pass, tensor, place.source, {piece.begin + i, 1}, terms);
      return key_of(terms[0]) == place.key ? 1 : 0;
    };
    cut = piece.begin + locate(is_equal, piece.count, place.equal - in.before, memory).index + 1;
  }
  if (threadIdx.x != 0) return;
  minerua_mask& mask = request.masks[tensor.first_source + place.source];
  (place.is_top ? mask.top_cut : mask.but_cut) = cut;
}

}  // namespace
}  // namespace minerua::cuda
