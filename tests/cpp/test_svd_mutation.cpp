#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/error.hpp"
#include "core/jacobi.hpp"
#include "core/parallel.hpp"
#include "core/svd_mutation.hpp"
#include "isa/loops.hpp"

using namespace minerua;
using check::random_floats;

namespace {

/// Changes `batch` matrices of one shape that lie end to end.
std::vector<float> mutated(const std::vector<float>& matrices, std::size_t batch, std::size_t m, std::size_t n,
                           const std::vector<float>& w, GramPrecision precision = GramPrecision::twofold) {
  std::vector<float> out(matrices.size());
  std::vector<SpectrumChange> changes;
  for (std::size_t b = 0; b < batch; ++b)
    changes.push_back({&matrices[b * m * n], &w[b * std::min(m, n)], &out[b * m * n], m, n});
  check::that(svd_mutation(changes, precision).empty(), "every matrix converges");
  return out;
}

constexpr GramPrecision precisions[] = {GramPrecision::single, GramPrecision::twofold};

float largest_difference(const std::vector<float>& a, const std::vector<float>& b, float factor) {
  float largest = 0.0f;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - factor * b[i]));
  return largest;
}

void test_a_constant_multiplier_scales_the_matrix() {
  for (auto [m, n] : {std::pair<std::size_t, std::size_t>{1, 1}, {1, 9}, {9, 1}, {10, 128}, {64, 33}, {40, 40}}) {
    const std::vector<float> matrices = random_floats(3 * m * n, 5);
    const std::vector<float> w(3 * std::min(m, n), 0.75f);
    for (GramPrecision precision : precisions)
      check::that(largest_difference(mutated(matrices, 3, m, n, w, precision), matrices, 0.75f) < 1e-5f,
                  "constant multiplier, " + std::to_string(m) + " x " + std::to_string(n));
  }
}

void test_extreme_scales_give_the_scaled_result() {
  const std::vector<float> w = random_floats(12, 8), matrix = random_floats(12 * 20, 6);
  for (GramPrecision precision : precisions) {
    const std::vector<float> plain = mutated(matrix, 1, 12, 20, w, precision);
    for (float scale : {0x1p-100f, 0x1p100f}) {
      std::vector<float> scaled(matrix);
      for (float& value : scaled) value *= scale;
      check::that(largest_difference(mutated(scaled, 1, 12, 20, w, precision), plain, scale) == 0.0f,
                  "a power of two scales exactly");
    }
  }
}

void test_bits_do_not_depend_on_threads_or_batch() {
  const std::size_t batch = 40, m = 30, n = 50;
  const std::vector<float> matrices = random_floats(batch * m * n, 9), w = random_floats(batch * m, 10);
  for (GramPrecision precision : precisions) {
    set_num_threads(1);
    const std::vector<float> alone = mutated(matrices, batch, m, n, w, precision);
    set_num_threads(3);
    check::that(mutated(matrices, batch, m, n, w, precision) == alone, "three threads give the bits of one");
    const std::vector<float> last(matrices.end() - m * n, matrices.end()), last_w(w.end() - m, w.end());
    const std::vector<float> expected(alone.end() - m * n, alone.end());
    check::that(mutated(last, 1, m, n, last_w, precision) == expected, "a matrix does not see its neighbours");
  }
}

void test_matrices_of_any_shapes_are_changed_where_they_lie() {
  const std::pair<std::size_t, std::size_t> shapes[] = {{3, 5}, {64, 64}, {1, 1}, {5, 3}, {90, 7}, {64, 64}, {7, 90}, {200, 3}};
  for (GramPrecision precision : precisions)
    for (std::size_t threads : {1, 4}) {
      set_num_threads(threads);
      std::vector<std::vector<float>> matrices, multipliers, expected;
      std::vector<SpectrumChange> changes;
      for (const auto& [m, n] : shapes) {
        matrices.push_back(random_floats(m * n, static_cast<unsigned>(m + 3 * n)));
        multipliers.push_back(random_floats(std::min(m, n), static_cast<unsigned>(n)));
        expected.push_back(mutated(matrices.back(), 1, m, n, multipliers.back(), precision));
      }
      for (std::size_t i = 0; i < matrices.size(); ++i)
        changes.push_back({matrices[i].data(), multipliers[i].data(), matrices[i].data(), shapes[i].first, shapes[i].second});
      svd_mutation(changes, precision);
      check::that(matrices == expected, "mixed shapes in place on " + std::to_string(threads) + " threads");
    }
}

void test_wrong_values_are_refused_by_number() {
  std::vector<float> matrices = random_floats(4 * 6, 1), w(4 * 2, 1.0f);
  matrices[2 * 6 + 1] = std::numeric_limits<float>::quiet_NaN();
  matrices[3 * 6] = std::numeric_limits<float>::infinity();
  check::throws<InvalidArgument>([&] { mutated(matrices, 4, 3, 2, w); }, "in matrix 2, 3", "values that are not finite");
  matrices = random_floats(4 * 6, 1);
  w[5] = std::numeric_limits<float>::infinity();
  check::throws<InvalidArgument>([&] { mutated(matrices, 4, 3, 2, w); }, "multipliers of matrix 2", "infinite multiplier");
  const SpectrumChange empty{matrices.data(), w.data(), matrices.data(), 3, 0};
  check::throws<InvalidArgument>([&] { svd_mutation({empty}, GramPrecision::single); }, "matrix 0 is 3 x 0", "no columns");
  svd_mutation({}, GramPrecision::single);  // nothing to do is nothing wrong
}

std::vector<double> random_symmetric(std::size_t n, std::size_t rank, unsigned seed) {
  const std::vector<float> factor = random_floats(n * rank, seed);
  std::vector<double> gram(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j)
      for (std::size_t k = 0; k < rank; ++k)
        gram[i * n + j] += static_cast<double>(factor[i * rank + k]) * static_cast<double>(factor[j * rank + k]);
  return gram;
}

/// Largest entry of Vᵀ diag(λ) V - A and of V Vᵀ - I, V with eigenvectors in its rows.
std::pair<double, double> residuals(const std::vector<double>& a, const std::vector<double>& vectors,
                                    const std::vector<double>& values, std::size_t n) {
  double rebuilt = 0.0, orthonormal = 0.0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      double entry = -a[i * n + j], product = i == j ? -1.0 : 0.0;
      for (std::size_t k = 0; k < n; ++k) {
        entry += vectors[k * n + i] * values[k] * vectors[k * n + j];
        product += vectors[i * n + k] * vectors[j * n + k];
      }
      rebuilt = std::max(rebuilt, std::fabs(entry));
      orthonormal = std::max(orthonormal, std::fabs(product));
    }
  return {rebuilt, orthonormal};
}

template <class Real>
void expect_eigen(const isa::SpectralLoops<Real>& loops, std::size_t n, std::size_t rank, double tolerance) {
  const std::vector<double> a = random_symmetric(n, rank, static_cast<unsigned>(n));
  const double largest = *std::max_element(a.begin(), a.end());
  constexpr std::size_t line = 64 / sizeof(Real);
  const std::size_t stride = (n + line - 1) / line * line;
  std::vector<Real> padded((n + 7) / 8 * 8 * stride, Real{0}), rows(padded), values(stride), scratch(isa::eigen_scratch_rows * stride);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) padded[i * stride + j] = static_cast<Real>(a[i * n + j] / largest);
  const std::string name = "eigen of " + std::to_string(n) + ", rank " + std::to_string(rank);
  check::that(loops.eigen(padded.data(), n, stride, values.data(), rows.data(), scratch.data()), name);
  std::vector<double> vectors(n * n), eigenvalues(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(n));
  for (std::size_t i = 0; i < n; ++i) std::copy_n(&rows[i * stride], n, &vectors[i * n]);
  for (double& value : eigenvalues) value *= largest;
  const auto [rebuilt, orthonormal] = residuals(a, vectors, eigenvalues, n);
  check::that(rebuilt < tolerance * static_cast<double>(n + 10) * largest, name + ": residual " + std::to_string(rebuilt));
  check::that(orthonormal < tolerance * static_cast<double>(n), name + ": V Vᵀ - I " + std::to_string(orthonormal));
}

void test_eigen_rebuilds_the_matrix_from_orthonormal_vectors() {
  for (std::size_t n : {1, 2, 3, 8, 9, 16, 17, 31, 64, 65, 100, 128, 200})
    for (std::size_t rank : {n, (n + 1) / 2, std::size_t{1}}) {
      expect_eigen(isa::loops().in_double, n, rank, 1e-14);
      expect_eigen(isa::loops().in_single, n, rank, 4e-6);
    }
}

void test_every_pair_meets_once_per_tournament() {
  for (int players : {2, 4, 10, 128}) {
    std::vector<int> met(static_cast<std::size_t>(players * players), 0);
    for (int round = 0; round < players - 1; ++round) {
      std::vector<int> busy(static_cast<std::size_t>(players), 0);
      for (int pair = 0; pair < players / 2; ++pair) {
        const Pair at = pair_of(pair, round, players);
        check::that(at.low >= 0 && at.low < at.high && at.high < players, "a pair is two players in order");
        ++met[static_cast<std::size_t>(at.low * players + at.high)];
        ++busy[static_cast<std::size_t>(at.low)];
        ++busy[static_cast<std::size_t>(at.high)];
      }
      check::that(std::count(busy.begin(), busy.end(), 1) == players, "a round keeps everybody busy once");
    }
    check::that(std::count(met.begin(), met.end(), 1) == players * (players - 1) / 2, "everybody meets everybody once");
  }
}

void rotate(const Rotation& r, double& x, double& y) {
  const double before = x;
  x = r.cosine * before - r.sine * y;
  y = r.sine * before + r.cosine * y;
}

/// The CUDA kernel's iteration, one thread; returns sweeps needed.
int jacobi(std::vector<double>& a, std::vector<double>& vectors, int n) {
  const auto at = [n](int i, int j) { return static_cast<std::size_t>(i * n + j); };
  double sum = 0.0;
  for (double value : a) sum += value * value;
  for (int sweep = 0; sweep < jacobi_max_sweeps; ++sweep) {
    bool rotated = false;
    for (int round = 0; round < n - 1; ++round) {
      std::vector<Rotation> rotations;
      for (int pair = 0; pair < n / 2; ++pair) {
        const auto [p, q] = pair_of(pair, round, n);
        rotations.push_back(rotation_for(a[at(p, p)], a[at(p, q)], a[at(q, q)], jacobi_tolerance * std::sqrt(sum)));
        rotated = rotated || rotations.back().sine != 0.0;
      }
      for (int pair = 0; pair < n / 2; ++pair)
        for (int j = 0; j < n; ++j) {
          const auto [p, q] = pair_of(pair, round, n);
          rotate(rotations[static_cast<std::size_t>(pair)], a[at(p, j)], a[at(q, j)]);
          rotate(rotations[static_cast<std::size_t>(pair)], vectors[at(p, j)], vectors[at(q, j)]);
        }
      for (int pair = 0; pair < n / 2; ++pair)
        for (int i = 0; i < n; ++i) {
          const auto [p, q] = pair_of(pair, round, n);
          rotate(rotations[static_cast<std::size_t>(pair)], a[at(i, p)], a[at(i, q)]);
        }
    }
    if (!rotated) return sweep + 1;
  }
  return jacobi_max_sweeps + 1;
}

void test_the_jacobi_formulas_of_the_kernel_diagonalise() {
  for (std::size_t n : {2, 10, 64, 128})
    for (std::size_t rank : {n, n / 2, std::size_t{1}}) {
      const std::vector<double> a = random_symmetric(n, rank, static_cast<unsigned>(n + 1));
      std::vector<double> work(a), vectors(n * n, 0.0), values(n);
      for (std::size_t i = 0; i < n; ++i) vectors[i * n + i] = 1.0;
      const int sweeps = jacobi(work, vectors, static_cast<int>(n));
      const std::string name = "jacobi of " + std::to_string(n) + ", rank " + std::to_string(rank);
      check::that(sweeps <= 20, name + " took " + std::to_string(sweeps) + " sweeps");
      for (std::size_t i = 0; i < n; ++i) values[i] = work[i * n + i];
      const auto [rebuilt, orthonormal] = residuals(a, vectors, values, n);
      check::that(rebuilt < 1e-11 * static_cast<double>(n + 10), name + ": residual " + std::to_string(rebuilt));
      check::that(orthonormal < 1e-13 * static_cast<double>(n + 10), name + ": V Vᵀ - I " + std::to_string(orthonormal));
    }
}

}  // namespace

int main() {
  test_a_constant_multiplier_scales_the_matrix();
  test_extreme_scales_give_the_scaled_result();
  test_bits_do_not_depend_on_threads_or_batch();
  test_matrices_of_any_shapes_are_changed_where_they_lie();
  test_wrong_values_are_refused_by_number();
  test_eigen_rebuilds_the_matrix_from_orthonormal_vectors();
  test_every_pair_meets_once_per_tournament();
  test_the_jacobi_formulas_of_the_kernel_diagonalise();
  set_num_threads(1);
  return check::summary("svd_mutation");
}
