/// @file masked_kernel.hpp
/// The device code of `masked_sums` and `merge_masked`: what masks keep of task vectors, and merges of it.
#pragma once

#include "cuda/pass_terms.hpp"

namespace minerua::cuda {
namespace {

constexpr int masked_threads = 128;

/// Blocks of `merge_masked` that a multiprocessor must have room for: loads of one then hide behind the arithmetic of others.
constexpr int masked_blocks = 4;

/// Sources whose kept parts stay in shared memory between the election and the sum; those of more are found again.
constexpr int most_resident = 8;

// ── random words ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Four words of Philox4x32-10. Source: Salmon 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3.
__device__ inline void scramble(std::uint64_t counter, const minerua_mask& mask, std::uint32_t (&x)[4]) {
  x[0] = static_cast<std::uint32_t>(counter), x[1] = static_cast<std::uint32_t>(counter >> 32);
  x[2] = mask.tensor, x[3] = mask.model;
  auto low = static_cast<std::uint32_t>(mask.seed), high = static_cast<std::uint32_t>(mask.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53u} * x[0], second = std::uint64_t{0xCD9E8D57u} * x[2];
    x[0] = static_cast<std::uint32_t>(second >> 32) ^ x[1] ^ low;
    x[2] = static_cast<std::uint32_t>(first >> 32) ^ x[3] ^ high;
    x[1] = static_cast<std::uint32_t>(second), x[3] = static_cast<std::uint32_t>(first);
    low += 0x9E3779B9u, high += 0xBB67AE85u;
  }
}

/// The words of the thread's eight elements. Element i has word i / 16 % 4 of counter i / 64 * 16 + i % 16, so the eight
/// neighbours that share 64 elements scramble two counters each and trade their words: nothing is scrambled twice.
/// `exchange` is the block's, eight words for each thread; all threads of a warp must come here together.
__device__ inline void draw_words(const minerua_mask& mask, std::int64_t first, std::uint32_t* exchange,
                                  std::uint32_t (&words)[pass_lanes]) {
  const unsigned place = threadIdx.x % 8;
  std::uint32_t* const shared = exchange + threadIdx.x / 8 * 64;
  const std::uint64_t counter = static_cast<std::uint64_t>(first) / 64 * 16 + 2 * place;
  std::uint32_t even[4], odd[4];
  scramble(counter, mask, even);
  scramble(counter + 1, mask, odd);
  __syncwarp();  // a neighbour may not have read yet what was traded before
#pragma unroll
  for (unsigned w = 0; w < 4; ++w) shared[16 * w + 2 * place] = even[w], shared[16 * w + 2 * place + 1] = odd[w];
  __syncwarp();
#pragma unroll
  for (unsigned i = 0; i < pass_lanes; ++i) words[i] = shared[8 * place + i];
}

// ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────

__device__ inline bool is_among_largest(std::uint32_t key, std::int64_t index, std::uint32_t limit, std::int64_t cut) {
  return key > limit || (key == limit && index < cut);
}

/// Whether a word is below floor(p · 2^32): below 1 the product is exact, and conversion rounds down. NaN keeps nothing.
__device__ inline bool is_drawn(std::uint32_t word, float p) {
  if (p >= 1.0f) return true;
  return p > 0.0f && word < static_cast<std::uint32_t>(__fmul_rn(p, 4294967296.0f));
}

/// Sets bit i where the mask keeps element i of the run, and p[i] to the element's probability.
__device__ inline unsigned kept_lanes(const minerua_mask& mask, const Run& run, const Lanes& terms,
                                      std::uint32_t* exchange, Lanes& p) {
  std::uint32_t words[pass_lanes] = {};
  if (mask.draws) draw_words(mask, run.first, exchange, words);
  unsigned kept = 0;
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) {
    const std::uint32_t key = key_of(terms[i]);
    const std::int64_t index = run.first + i;
    bool keeps = is_among_largest(key, index, mask.top_key, mask.top_cut) &&
                 !is_among_largest(key, index, mask.but_key, mask.but_cut);
    p[i] = mask.probability;
    if (mask.draws && mask.probabilities != nullptr) {
      p[i] = i < run.count ? mask.probabilities[index] : 0.0f;
      keeps = keeps && is_drawn(words[i], p[i]);
    } else if (mask.draws) {
      keeps = keeps && words[i] < mask.limit;
    }
    kept |= keeps ? 1u << i : 0u;
  }
  return kept;
}

// ── sums of magnitudes ───────────────────────────────────────────────────────────────────────────────────────────────

struct MaskedSumsRequest {
  minerua_pass pass;
  const minerua_mask* masks;
  double* partial;
};

__device__ inline void add_magnitudes(const Lanes& terms, unsigned kept, int count, double (&sums)[2]) {
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) {
    const double magnitude = i < count ? static_cast<double>(fabsf(terms[i])) : 0.0;
    sums[0] += magnitude;
    sums[1] += (kept >> i & 1u) != 0 ? magnitude : 0.0;
  }
}

__global__ void __launch_bounds__(masked_threads) masked_sums_kernel(const __grid_constant__ MaskedSumsRequest request) {
  extern __shared__ double block_memory[];
  auto* const exchange = reinterpret_cast<std::uint32_t*>(block_memory + 2 * masked_threads);
  const minerua_piece piece = request.pass.pieces[blockIdx.x];
  const minerua_tensor tensor = request.pass.tensors[piece.tensor];
  const std::int64_t end = piece.begin + piece.count;
  for (int k = 0; k < tensor.source_count; ++k) {
    const minerua_mask mask = request.masks[tensor.first_source + k];
    double sums[2] = {};  // of all, and of what is kept
    for (std::int64_t start = piece.begin; start < end; start += masked_threads * pass_lanes) {
      const Run run = run_at(start + threadIdx.x * pass_lanes, end);
      Lanes terms, p;
      load_terms(request.pass, tensor, k, run, terms);
      add_magnitudes(terms, kept_lanes(mask, run, terms, exchange, p), run.count, sums);
    }
    block_sums(sums, block_memory);
    if (threadIdx.x != 0) continue;
    request.partial[piece.at + 2 * k] = sums[0];
    request.partial[piece.at + 2 * k + 1] = sums[1];
  }
}

constexpr int exchange_bytes = masked_threads * pass_lanes * static_cast<int>(sizeof(std::uint32_t));
constexpr int masked_sums_shared_bytes = sums_shared_bytes(2, masked_threads) + exchange_bytes;

// ── merges ───────────────────────────────────────────────────────────────────────────────────────────────────────────

struct MergeMaskedRequest {
  minerua_pass pass;
  const minerua_mask* masks;
  const float* numbers;
  std::int64_t* counts;
};

/// What a thread of merge_masked_kernel knows besides its run.
struct MaskedContext {
  const minerua_pass& pass;
  const minerua_tensor& tensor;
  const minerua_mask* masks;  // of this tensor
  const float* numbers;       // of this tensor
  std::int64_t* counts;       // of this tensor
  std::uint32_t* exchange;
  Quad* resident;  // of this block: two for every source and thread

  __device__ float factor(int k) const { return __ldg(numbers + k); }
  __device__ float vote(int k) const { return __ldg(numbers + tensor.source_count + k); }
  __device__ float share(int k) const { return __ldg(numbers + 2 * tensor.source_count + k); }
  __device__ float scale() const { return __ldg(numbers + 3 * tensor.source_count); }
};

/// Turns the elements of source k into the kept part of its task vector.
__device__ inline void keep_part(const MaskedContext& context, int k, const Run& run, const Lanes& base, Lanes& part) {
  if (context.tensor.has_base) subtract(base, part);
  const minerua_mask mask = context.masks[k];
  Lanes p;
  const unsigned kept = kept_lanes(mask, run, part, context.exchange, p);
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) {
    const bool keeps = (kept >> i & 1u) != 0;
    const float value = keeps ? part[i] : 0.0f;
    part[i] = keeps && mask.inverse ? __fdiv_rn(value, p[i]) : value;
  }
}

__device__ inline void remember(const MaskedContext& context, int k, const Lanes& part) {
  Quad halves[2];
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) halves[i / 4].word[i % 4] = bits_of_float(part[i]);
  context.resident[(2 * k) * masked_threads + threadIdx.x] = halves[0];
  context.resident[(2 * k + 1) * masked_threads + threadIdx.x] = halves[1];
}

/// The kept part of source k once more: remembered, or found again.
__device__ inline void recall(const MaskedContext& context, int k, const Run& run, const Lanes& base, Lanes& part) {
  if (k < most_resident) {
    const Quad halves[2] = {context.resident[(2 * k) * masked_threads + threadIdx.x],
                            context.resident[(2 * k + 1) * masked_threads + threadIdx.x]};
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) part[i] = float_from_bits(halves[i / 4].word[i % 4]);
    return;
  }
  const minerua_source source = context.pass.sources[context.tensor.first_source + k];
  finish_values(source, context.tensor.columns, run, load_raw(source, run), part);
  keep_part(context, k, run, base, part);
}

/// Adds the part of source k to the sum, or to the vote.
__device__ inline void add_part(const MaskedContext& context, int k, const Lanes& part, Lanes& sums) {
  const bool votes = context.tensor.election != MINERUA_ALL;
  const float weight = votes ? context.vote(k) : context.factor(k);
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) sums[i] = __fadd_rn(sums[i], __fmul_rn(weight, part[i]));
  if (votes && k < most_resident) remember(context, k, part);
}

__device__ inline void add_parts_ahead(const MaskedContext& context, const Ahead& ahead, int first, const Run& run,
                                       const Lanes& base, Lanes& sums) {
#pragma unroll
  for (int j = 0; j < sources_ahead; ++j) {
    const int k = first + j;
    if (k >= context.tensor.source_count) break;
    Lanes part;
    finish_ahead(context.pass, context.tensor, ahead, first, j, run, part);
    count_not_finite(part, run.count, context.counts + k);
    keep_part(context, k, run, base, part);
    add_part(context, k, part, sums);
  }
}

/// Sums up what agrees with the elected signs, and divides it by the shares of who agrees.
__device__ inline void sum_elected(const MaskedContext& context, const Run& run, const Lanes& base,
                                   const Lanes& elected, Lanes& totals) {
  const bool divides = context.tensor.election == MINERUA_SIGNS_AND_SHARES;
  Lanes divisors = {};
  for (int k = 0; k < context.tensor.source_count; ++k) {
    Lanes part;
    recall(context, k, run, base, part);
    const float factor = context.factor(k), vote = context.vote(k), share = divides ? context.share(k) : 0.0f;
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) {
      const float vote_of = __fmul_rn(vote, part[i]);
      if (elected[i] >= 0.0f ? !(vote_of > 0.0f) : !(vote_of < 0.0f)) continue;
      totals[i] = __fadd_rn(totals[i], __fmul_rn(factor, part[i]));
      divisors[i] = __fadd_rn(divisors[i], share);
    }
  }
  if (!divides) return;
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) totals[i] = __fdiv_rn(totals[i], divisors[i] == 0.0f ? 1.0f : divisors[i]);
}

__device__ inline void merge_masked_run(const MaskedContext& context, const Run& run) {
  const minerua_tensor& tensor = context.tensor;
  Ahead ahead;
  Raw raw_base{};
  minerua_source start{};
  if (tensor.has_base) {
    start = context.pass.sources[tensor.first_source + tensor.source_count];
    raw_base = load_raw(start, run);
  }
  load_ahead(context.pass, tensor, 0, run, ahead);
  Lanes base = {}, sums = {};
  if (tensor.has_base) {
    finish_values(start, tensor.columns, run, raw_base, base);
    count_not_finite(base, run.count, context.counts + tensor.source_count);
  }
  for (int first = 0;;) {
    add_parts_ahead(context, ahead, first, run, base, sums);
    first += sources_ahead;
    if (first >= tensor.source_count) break;
    load_ahead(context.pass, tensor, first, run, ahead);
  }
  Lanes totals = {};
  if (tensor.election != MINERUA_ALL) sum_elected(context, run, base, sums, totals);
  const float scale = context.scale();
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) {
    const float moved = __fmul_rn(scale, tensor.election == MINERUA_ALL ? sums[i] : totals[i]);
    totals[i] = tensor.has_base ? __fadd_rn(base[i], moved) : moved;
  }
  store_results(tensor, run, totals, context.counts + tensor.source_count + 1);
}

__global__ void __launch_bounds__(masked_threads, masked_blocks) merge_masked_kernel(
    const __grid_constant__ MergeMaskedRequest request) {
  extern __shared__ double block_memory[];
  const minerua_piece piece = request.pass.pieces[blockIdx.x];
  const minerua_tensor tensor = request.pass.tensors[piece.tensor];
  auto* const exchange = reinterpret_cast<std::uint32_t*>(block_memory);
  const MaskedContext context{request.pass,
                              tensor,
                              request.masks + tensor.first_source,
                              request.numbers + tensor.first_number,
                              request.counts + tensor.first_result,
                              exchange,
                              reinterpret_cast<Quad*>(exchange + masked_threads * pass_lanes)};
  const std::int64_t end = piece.begin + piece.count;
  for (std::int64_t start = piece.begin; start < end; start += masked_threads * pass_lanes)
    merge_masked_run(context, run_at(start + threadIdx.x * pass_lanes, end));  // all of a warp: they trade words
}

/// Bytes of dynamic shared memory that a block needs.
constexpr int merge_masked_shared_bytes(int most_sources) {
  const int resident = most_sources < most_resident ? most_sources : most_resident;
  return exchange_bytes + resident * 2 * masked_threads * static_cast<int>(sizeof(Quad));
}

}  // namespace
}  // namespace minerua::cuda
