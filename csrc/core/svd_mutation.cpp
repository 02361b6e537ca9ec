#include "core/svd_mutation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "isa/loops.hpp"

namespace minerua {
namespace {

enum class Outcome : unsigned char { done, matrix_not_finite, multiplier_not_finite, not_converged };

/// Rounds up to a multiple of 8 that is an odd number of cache lines, so that columns do not fall on one another in the
/// cache.
std::size_t padded(std::size_t count) {
  const std::size_t lines = (count + 7) / 8;
  return 8 * (lines % 2 == 0 ? lines + 1 : lines);
}

std::size_t multiple_of_eight(std::size_t count) { return (count + 7) / 8 * 8; }

/// Working memory for matrices of one shape, in tall form: `rows` >= `columns`, transposed where the input is wide. Padding
/// is zero and stays zero.
struct Workspace {
  Workspace(std::size_t m, std::size_t n)
      : wide(m < n),
        rows(std::max(m, n)),
        columns(std::min(m, n)),
        stride(padded(columns)),
        tall(multiple_of_eight(rows) * stride),
        product(multiple_of_eight(rows) * stride),
        gram(multiple_of_eight(columns) * stride),
        vectors(multiple_of_eight(columns) * stride),
        scaled(multiple_of_eight(columns) * stride),
        eigenvalues(stride),
        scratch(6 * stride),
        order(columns) {}

  bool wide;
  std::size_t rows, columns, stride;
  std::vector<double> tall, product, gram, vectors, scaled, eigenvalues, scratch;
  std::vector<std::size_t> order;
};

/// Copies the matrix into tall form, times 2^-exponent.
void read_tall(const float* matrix, double factor, Workspace& work) {
  for (std::size_t i = 0; i < work.rows; ++i)
    for (std::size_t j = 0; j < work.columns; ++j)
      work.tall[i * work.stride + j] = factor * (work.wide ? matrix[j * work.rows + i] : matrix[i * work.columns + j]);
}

void write_tall(const Workspace& work, double factor, float* matrix) {
  for (std::size_t i = 0; i < work.rows; ++i)
    for (std::size_t j = 0; j < work.columns; ++j)
      (work.wide ? matrix[j * work.rows + i] : matrix[i * work.columns + j]) =
          static_cast<float>(factor * work.product[i * work.stride + j]);
}

/// product = tall · V diag(w) Vᵀ, eigenvectors in the rows of `vectors`; multiplier r belongs to the r-th largest eigenvalue.
void scale_and_multiply(const float* multipliers, Workspace& work) {
  std::iota(work.order.begin(), work.order.end(), std::size_t{0});
  std::stable_sort(work.order.begin(), work.order.end(),
                   [&work](std::size_t a, std::size_t b) { return work.eigenvalues[a] > work.eigenvalues[b]; });
  for (std::size_t rank = 0; rank < work.columns; ++rank) {
    const std::size_t row = work.order[rank] * work.stride;
    for (std::size_t j = 0; j < work.stride; ++j)
      work.scaled[row + j] = static_cast<double>(multipliers[rank]) * work.vectors[row + j];
  }
  const isa::Loops& loops = isa::loops();
  const std::size_t side = multiple_of_eight(work.columns);
  loops.multiply(work.scaled.data(), 1, work.stride, work.vectors.data(), work.stride, work.gram.data(), work.stride,
                 side, side, work.columns);
  loops.multiply(work.tall.data(), work.stride, 1, work.gram.data(), work.stride, work.product.data(), work.stride,
                 multiple_of_eight(work.rows), side, work.columns);
}

bool all_finite(const float* values, std::size_t count) {
  return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

Outcome mutate_single(const float* matrix, const float* multipliers, float* out, Workspace& work) {
  const std::size_t count = work.rows * work.columns;
  if (!all_finite(matrix, count)) return Outcome::matrix_not_finite;
  if (!all_finite(multipliers, work.columns)) return Outcome::multiplier_not_finite;
  float largest = 0.0f;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(matrix[i]));
  if (!(largest > 0.0f)) {
    std::fill(out, out + count, 0.0f);
    return Outcome::done;
  }
  int exponent = 0;
  std::frexp(largest, &exponent);  // a power of two: exact, and the largest entry becomes [0.5, 1)
  read_tall(matrix, std::ldexp(1.0, -exponent), work);
  const isa::Loops& loops = isa::loops();
  const std::size_t side = multiple_of_eight(work.columns);
  loops.multiply(work.tall.data(), 1, work.stride, work.tall.data(), work.stride, work.gram.data(), work.stride, side,
                 side, work.rows);
  if (!loops.eigen(work.gram.data(), work.columns, work.stride, work.eigenvalues.data(), work.vectors.data(),
                   work.scratch.data()))
    return Outcome::not_converged;
  scale_and_multiply(multipliers, work);
  write_tall(work, std::ldexp(1.0, exponent), out);
  return Outcome::done;
}

/// "3, 17 and 2 more" for the matrices with this outcome; empty if there is none.
std::string indices_of(const std::vector<Outcome>& outcomes, Outcome wanted) {
  constexpr std::size_t listed = 8;
  std::string text;
  std::size_t found = 0;
  for (std::size_t b = 0; b < outcomes.size(); ++b) {
    if (outcomes[b] != wanted) continue;
    if (++found <= listed) text += (found > 1 ? ", " : "") + std::to_string(b);
  }
  return found > listed ? text + " and " + std::to_string(found - listed) + " more" : text;
}

void expect_done(const std::vector<Outcome>& outcomes) {
  const std::string matrices = indices_of(outcomes, Outcome::matrix_not_finite);
  MINERUA_EXPECTS(matrices.empty(), "svd_mutation: NaN or infinity in matrix " << matrices);
  const std::string multipliers = indices_of(outcomes, Outcome::multiplier_not_finite);
  MINERUA_EXPECTS(multipliers.empty(), "svd_mutation: NaN or infinity in the multipliers of matrix " << multipliers);
  const std::string unfinished = indices_of(outcomes, Outcome::not_converged);
  if (!unfinished.empty()) throw NotConverged("svd_mutation: no convergence for matrix " + unfinished);
}

}  // namespace

void svd_mutation(const MatrixBatchView<const float>& matrices, const MatrixBatchView<const float>& multipliers,
                  const MatrixBatchView<float>& out) {
  const std::size_t m = matrices.rows, n = matrices.columns;
  MINERUA_EXPECTS(matrices.batch > 0 && m > 0 && n > 0,
                  "svd_mutation: " << matrices.batch << " matrices of " << m << " x " << n << ": nothing to do");
  MINERUA_EXPECTS(multipliers.batch == matrices.batch && multipliers.rows == 1 && multipliers.columns == std::min(m, n),
                  "svd_mutation: multipliers are (" << multipliers.batch << ", " << multipliers.columns << "), must be ("
                                                    << matrices.batch << ", " << std::min(m, n) << ")");
  MINERUA_EXPECTS(out.batch == matrices.batch && out.rows == m && out.columns == n,
                  "svd_mutation: out is not shaped like the matrices");
  // Small matrices share a workspace within a task; what is computed for one does not depend on its neighbours.
  const std::size_t per_task = std::max<std::size_t>(1, 65536 / (m * n));
  std::vector<Outcome> outcomes(matrices.batch, Outcome::done);
  parallel_for((matrices.batch + per_task - 1) / per_task, [&](std::size_t task) {
    Workspace work(m, n);
    for (std::size_t b = task * per_task; b < std::min(matrices.batch, (task + 1) * per_task); ++b)
      outcomes[b] = mutate_single(matrices.at(b), multipliers.at(b), out.at(b), work);
  });
  expect_done(outcomes);
}

}  // namespace minerua
