// The CUDA kernels, run on the CPU by cuda_emulation.hpp: indices, tails, barriers, races and results, without a device.
#include "cuda_emulation.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "core/merge.hpp"
#include "core/parallel.hpp"
#include "core/svd_mutation.hpp"
#include "cuda/merge_kernel.hpp"
#include "cuda/svd_mutation_kernel.hpp"

namespace minerua::cuda {
namespace {
double block_memory[svd_shared_bytes(max_side) / sizeof(double)];  // what `extern __shared__` of the kernel refers to
}
}  // namespace minerua::cuda

using namespace minerua;
using check::random_floats;

namespace {

const double nan_value = std::numeric_limits<double>::quiet_NaN();

// ── merge ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Random elements, each `Storage` exactly where a 16-byte packet may or may not begin.
template <DType dtype>
struct Elements {
  using Storage = typename Element<dtype>::Storage;
  Elements(std::size_t size, unsigned seed, std::size_t offset) : stored(size + offset), first(offset) {
    const std::vector<float> values = random_floats(size, seed);
    for (std::size_t i = 0; i < size; ++i) stored[offset + i] = Element<dtype>::store(values[i]);
  }
  const Storage* data() const { return stored.data() + first; }

  std::vector<Storage> stored;
  std::size_t first;
};

struct MergeCase {
  std::size_t size, experts, children, offset;
  bool has_base;
};

template <DType from, DType start, DType to>
void check_merge(const MergeCase& given) {
  std::vector<Elements<from>> experts;
  for (std::size_t k = 0; k < given.experts; ++k) experts.emplace_back(given.size, static_cast<unsigned>(k), given.offset);
  const Elements<start> base(given.size, 99, given.offset);
  const std::vector<float> coefficients = random_floats(given.experts * given.children, 77);
  std::vector<typename Element<to>::Storage> expected(given.children * given.size), got(expected.size());
  cuda::MergeRequest request{{}, static_cast<int>(given.experts), given.has_base ? base.data() : nullptr,
                             coefficients.data(), static_cast<int>(given.children),
                             static_cast<std::int64_t>(given.size), got.data()};
  std::vector<ConstTensorView> views;
  for (std::size_t k = 0; k < given.experts; ++k) {
    request.experts.data[k] = experts[k].data();
    views.push_back({experts[k].data(), from, given.size});
  }
  constexpr int packet = cuda::packet_lanes<from, start, to>();
  const bool packed = cuda::fits_packets<packet>(request, from, start, to);
  emulation::launch(3, 32, 5, [&] {
    packed ? cuda::merge_kernel<from, start, to, packet>(request) : cuda::merge_kernel<from, start, to, 1>(request);
  });
  merge(views, given.has_base ? std::optional(ConstTensorView{base.data(), start, given.size}) : std::nullopt,
        coefficients.data(), given.children, {expected.data(), to, expected.size()});
  check::that(std::memcmp(got.data(), expected.data(), got.size() * sizeof got[0]) == 0,
              "merge kernel: " + std::to_string(given.size) + " elements, " + std::to_string(given.experts) + " experts, " +
                  std::to_string(given.children) + " children, offset " + std::to_string(given.offset));
  check::that(!packed || given.offset == 0, "an address between two packets is not loaded as one");
}

template <DType from, DType start, DType to>
void check_merges() {
  for (std::size_t size : {1, 7, 8, 16, 1003})
    for (std::size_t experts : {1, 3, 8, 9, 64})
      for (std::size_t children : {1, 3})
        for (bool has_base : {false, true})
          check_merge<from, start, to>({size, experts, children, (size + experts) % 2, has_base});
}

void test_merge_kernel_has_the_bits_of_the_cpu() {
  constexpr DType f32 = DType::float32, f16 = DType::float16, bf16 = DType::bfloat16;
  check_merges<f32, f32, f32>();
  check_merges<f16, f16, f16>();
  check_merges<bf16, bf16, bf16>();
  check_merges<bf16, f32, f16>();
  check_merges<f16, bf16, f32>();
  check_merges<f32, f16, bf16>();
}

// ── SVD mutation ─────────────────────────────────────────────────────────────────────────────────────────────────────

struct Mutation {
  std::vector<float> out;
  std::vector<int> outcomes;
};

/// Everything that the kernel must write before it reads it holds NaN at first.
Mutation mutated_by_kernel(const std::vector<float>& matrices, const std::vector<float>& w, std::size_t batch,
                           std::size_t m, std::size_t n, unsigned seed) {
  constexpr unsigned blocks = 2;
  const std::size_t side = (std::min(m, n) + 1) / 2 * 2;
  std::vector<double> workspace(blocks * side * side, nan_value);
  std::fill(std::begin(cuda::block_memory), std::end(cuda::block_memory), nan_value);
  Mutation result{std::vector<float>(matrices.size(), -1.0f), std::vector<int>(batch, -1)};
  const auto extent = [](std::size_t count) { return static_cast<std::int64_t>(count); };
  const cuda::SvdRequest request{matrices.data(), w.data(), result.out.data(), extent(batch), extent(m), extent(n),
                                 workspace.data(), result.outcomes.data()};
  emulation::launch(blocks, cuda::svd_threads, seed, [&] { cuda::svd_mutation_kernel(request); });
  return result;
}

float largest_difference(const float* a, const float* b, std::size_t count) {
  float largest = 0.0f;
  for (std::size_t i = 0; i < count; ++i)
    largest = std::fabs(a[i] - b[i]) <= largest ? largest : std::fabs(a[i] - b[i]);  // a NaN is kept
  return largest;
}

void check_mutation(std::size_t batch, std::size_t m, std::size_t n) {
  const std::string name = "svd kernel, " + std::to_string(m) + " x " + std::to_string(n);
  const std::vector<float> matrices = random_floats(batch * m * n, 11), w = random_floats(batch * std::min(m, n), 12);
  std::vector<float> expected(matrices.size());
  std::vector<SpectrumChange> changes;
  for (std::size_t b = 0; b < batch; ++b)
    changes.push_back({&matrices[b * m * n], &w[b * std::min(m, n)], &expected[b * m * n], m, n});
  svd_mutation(changes, GramPrecision::twofold);
  const Mutation in_order = mutated_by_kernel(matrices, w, batch, m, n, 0);
  const Mutation shuffled = mutated_by_kernel(matrices, w, batch, m, n, 3);
  check::that(in_order.outcomes == std::vector<int>(batch, MINERUA_DONE), name + ": every matrix is done");
  const float difference = largest_difference(in_order.out.data(), expected.data(), expected.size());
  check::that(difference < 2e-5f, name + ": differs from the CPU by " + std::to_string(difference));
  check::that(in_order.out == shuffled.out, name + ": the order of threads does not show");
}

void test_svd_kernel_agrees_with_the_cpu_in_any_order_of_threads() {
  for (auto [m, n] : {std::pair<std::size_t, std::size_t>{1, 1}, {1, 9}, {9, 1}, {2, 2}, {3, 3}, {7, 40}, {40, 7}, {31, 33}})
    check_mutation(5, m, n);
  check_mutation(1, 128, 130);
}

void test_svd_kernel_takes_what_is_degenerate_and_marks_what_is_not_finite() {
  constexpr std::size_t batch = 6, m = 9, n = 5, count = m * n;
  std::vector<float> matrices = random_floats(batch * count, 21), w(batch * n, 0.5f);
  std::fill_n(matrices.begin(), count, 0.0f);                                                     // 0: zero
  for (std::size_t i = 0; i < count; ++i) matrices[count + i] = matrices[count + i % n];          // 1: rank one
  matrices[2 * count + 7] = std::numeric_limits<float>::quiet_NaN();                              // 2
  matrices[3 * count] = -std::numeric_limits<float>::infinity();                                  // 3
  w[4 * n + 2] = std::numeric_limits<float>::infinity();                                          // 4
  for (std::size_t i = 0; i < count; ++i) matrices[5 * count + i] = std::ldexp(matrices[5 * count + i], -120);  // 5: tiny
  const Mutation got = mutated_by_kernel(matrices, w, batch, m, n, 8);
  check::that(got.outcomes == std::vector<int>{0, 0, 1, 1, 1, 0}, "outcomes of degenerate matrices");
  for (std::size_t i = 0; i < batch * count; ++i) {
    const bool is_lost = i / count >= 2 && i / count <= 4;
    const float half = 0.5f * matrices[i];
    check::that(is_lost ? std::isnan(got.out[i]) : std::fabs(got.out[i] - half) <= 1e-6f * (i < 5 * count ? 1.0f : 0x1p-118f),
                "degenerate matrices, element " + std::to_string(i));
  }
}

}  // namespace

int main() {
  set_num_threads(1);
  test_merge_kernel_has_the_bits_of_the_cpu();
  test_svd_kernel_agrees_with_the_cpu_in_any_order_of_threads();
  test_svd_kernel_takes_what_is_degenerate_and_marks_what_is_not_finite();
  return check::summary("cuda_kernels");
}
