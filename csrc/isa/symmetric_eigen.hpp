/// @file symmetric_eigen.hpp
/// Eigen-decomposition of a symmetric matrix: Householder tridiagonalisation, then implicit QL. Included only by the files
/// of this folder, inside their instruction set.
///
/// Source: Martin, Reinsch and Wilkinson, "Householder's tridiagonalization of a symmetric matrix" (1968); Dubrulle, Martin
/// and Wilkinson, "The implicit QL algorithm" (1968). Arranged so that every inner loop runs over contiguous rows: the
/// eigenvectors are the rows of the result, so a QL rotation mixes two rows, and a whole sweep is applied to a strip of
/// columns that stays in the first-level cache.
#pragma once

#include <cstddef>

#include "isa/matrix_product.hpp"

namespace minerua::isa {
namespace {

/// Below this an entry of a matrix of norm about 1 is nothing, and its square would underflow.
constexpr double negligible = 1e-140;
constexpr double epsilon = 2.220446049250313e-16;
constexpr int max_sweeps = 60;

inline Doubles eight(const double* values, std::size_t i) { return Doubles::load(values + i); }

/// Σ x[i] y[i] over `count` elements rounded up to eight; both must be zero, or their products harmless, beyond `count`.
inline double dot(const double* x, const double* y, std::size_t count) {
  Doubles even = {}, odd = {};
  std::size_t i = 0;
  for (; i + 8 < count; i += 16) {
    even += eight(x, i) * eight(y, i);
    odd += eight(x, i + 8) * eight(y, i + 8);
  }
  if (i < count) even += eight(x, i) * eight(y, i);
  return sum_of(even + odd);
}

/// x -= factor * y, over `count` elements rounded up to eight.
inline void subtract_multiple(double* x, double factor, const double* y, std::size_t count) {
  for (std::size_t i = 0; i < count; i += 8) (eight(x, i) - factor * eight(y, i)).store(x + i);
}

inline double hypotenuse(double x, double y) {
  const double square = x * x + y * y;
  if (square > negligible * negligible) return __builtin_sqrt(square);
  return __builtin_hypot(x, y);
}

/// Turns row `i` of the active block into a Householder vector v with (I - v vᵀ / h) x = (0, …, 0, beta); returns h, which
/// is 0 where there is nothing to do. The vector stays in the row, zero from column i on.
inline double householder_vector(double* row, std::size_t i, std::size_t stride, double* beta) {
  for (std::size_t j = i; j < stride; ++j) row[j] = 0.0;
  const double last = row[i - 1];
  row[i - 1] = 0.0;
  const double rest = dot(row, row, i);
  *beta = last;
  if (rest < negligible * negligible) return 0.0;
  const double norm = __builtin_sqrt(rest + last * last);
  *beta = last > 0.0 ? -norm : norm;
  row[i - 1] = last - *beta;
  return norm * (norm + __builtin_fabs(last));  // = vᵀv / 2
}

/// A -= v qᵀ + q vᵀ on the leading block, where q = p - (vᵀp / 2h) v and p = A v / h.
inline void apply_two_sided(double* a, std::size_t i, std::size_t stride, const double* v, double h, double* q) {
  for (std::size_t j = 0; j < i; ++j) q[j] = dot(a + j * stride, v, i) / h;
  for (std::size_t j = i; j < stride; ++j) q[j] = 0.0;
  subtract_multiple(q, dot(v, q, i) / (2.0 * h), v, i);
  for (std::size_t j = 0; j < i; ++j) {
    double* row = a + j * stride;
    for (std::size_t c = 0; c < i; c += 8)
      (eight(row, c) - (v[j] * eight(q, c) + q[j] * eight(v, c))).store(row + c);
  }
}

/// Reduces `a` to tridiagonal form: diagonal, off (off[i] couples i - 1 and i), and per row the h of its reflection, whose
/// vector stays in that row of `a`.
inline void tridiagonalise(double* a, std::size_t size, std::size_t stride, double* diagonal, double* off, double* h,
                           double* q) {
  for (std::size_t i = size; i-- > 0;) {
    double* row = a + i * stride;
    diagonal[i] = row[i];
    off[i] = h[i] = 0.0;
    if (i == 0) return;
    h[i] = householder_vector(row, i, stride, &off[i]);
    if (h[i] > 0.0) apply_two_sided(a, i, stride, row, h[i], q);
  }
}

/// Row r of Qᵀ is e_r H_1 … H_(size - 1); H_i leaves it alone while i <= r. Four rows at a time share the loads.
inline void accumulate_rows(const double* a, std::size_t size, std::size_t stride, const double* h, std::size_t first,
                            std::size_t count, double* vectors) {
  for (std::size_t r = first; r < first + count; ++r) {
    for (std::size_t j = 0; j < stride; ++j) vectors[r * stride + j] = 0.0;
    vectors[r * stride + r] = 1.0;
  }
  for (std::size_t i = first + 1; i < size; ++i) {
    if (!(h[i] > 0.0)) continue;
    const double* v = a + i * stride;
    for (std::size_t r = first; r < first + count; ++r) {  // rows r >= i are still unit rows, orthogonal to v: no change
      double* row = vectors + r * stride;
      subtract_multiple(row, dot(row, v, i) / h[i], v, i);
    }
  }
}

/// Applies rotations last - 1 … first, each mixing rows i and i + 1 of `vectors`, to one strip of `lanes` × 8 columns.
template <std::size_t lanes>
inline void rotate_strip(double* vectors, std::size_t stride, std::size_t first, std::size_t last, const double* cosine,
                         const double* sine) {
  Doubles carried[lanes];
  for (std::size_t v = 0; v < lanes; ++v) carried[v] = eight(vectors + last * stride, 8 * v);
  for (std::size_t i = last; i-- > first;) {
    double* row = vectors + i * stride;
    const double c = cosine[i], s = sine[i];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < lanes; ++v) {
      const Doubles upper = eight(row, 8 * v);
      (s * upper + c * carried[v]).store(row + stride + 8 * v);
      carried[v] = c * upper - s * carried[v];
    }
  }
  for (std::size_t v = 0; v < lanes; ++v) carried[v].store(vectors + first * stride + 8 * v);
}

inline void rotate_rows(double* vectors, std::size_t stride, std::size_t first, std::size_t last, const double* cosine,
                        const double* sine) {
  std::size_t column = 0;
  for (; column + 32 <= stride; column += 32) rotate_strip<4>(vectors + column, stride, first, last, cosine, sine);
  for (; column < stride; column += 8) rotate_strip<1>(vectors + column, stride, first, last, cosine, sine);
}

/// The first index m >= l at which the tridiagonal matrix falls apart; off[m + 1] couples m and m + 1.
inline std::size_t end_of_block(const double* diagonal, const double* off, std::size_t l, std::size_t size) {
  std::size_t m = l;
  for (; m + 1 < size; ++m) {
    const double neighbours = __builtin_fabs(diagonal[m]) + __builtin_fabs(diagonal[m + 1]);
    const double coupling = __builtin_fabs(off[m + 1]);
    if (coupling <= epsilon * neighbours || coupling < negligible) break;
  }
  return m;
}

/// One implicit QL sweep over the block l … m. Returns the index of the lowest rotation made: l, or more where the sweep
/// split the block on its way.
inline std::size_t sweep(double* d, double* off, std::size_t l, std::size_t m, double* cosine, double* sine) {
  double g = (d[l + 1] - d[l]) / (2.0 * off[l + 1]);
  const double root = hypotenuse(g, 1.0);
  g = d[m] - d[l] + off[l + 1] / (g + __builtin_copysign(root, g));  // Wilkinson's shift
  double c = 1.0, s = 1.0, p = 0.0;
  for (std::size_t i = m; i-- > l;) {
    const double f = s * off[i + 1], b = c * off[i + 1];
    const double r = hypotenuse(f, g);
    if (i + 2 <= m) off[i + 2] = r;
    if (!(r > 0.0)) {  // the block falls apart below i + 1
      d[i + 1] -= p;
      return i + 1;
    }
    s = f / r;
    c = g / r;
    g = d[i + 1] - p;
    const double t = (d[i] - g) * s + 2.0 * c * b;
    p = s * t;
    d[i + 1] = g + p;
    g = c * t - b;
    cosine[i] = c;
    sine[i] = s;
  }
  d[l] -= p;
  off[l + 1] = g;
  return l;
}

/// Diagonalises the tridiagonal matrix and turns the rows of `vectors` along with it.
inline bool diagonalise(double* d, double* off, std::size_t size, double* vectors, std::size_t stride, double* cosine,
                        double* sine) {
  for (std::size_t l = 0; l < size; ++l) {
    int sweeps = 0;
    for (std::size_t m = end_of_block(d, off, l, size); m != l; m = end_of_block(d, off, l, size)) {
      if (++sweeps > max_sweeps) return false;
      const std::size_t lowest = sweep(d, off, l, m, cosine, sine);
      if (m + 1 < size) off[m + 1] = 0.0;
      rotate_rows(vectors, stride, lowest, m, cosine, sine);
    }
  }
  return true;
}

bool eigen(double* a, std::size_t size, std::size_t stride, double* eigenvalues, double* vectors, double* scratch) {
  double* const off = scratch;
  double* const h = scratch + stride;
  double* const q = scratch + 2 * stride;
  double* const cosine = scratch + 3 * stride;
  double* const sine = scratch + 4 * stride;
  tridiagonalise(a, size, stride, eigenvalues, off, h, q);
  for (std::size_t first = 0; first < size; first += 4)
    accumulate_rows(a, size, stride, h, first, size - first < 4 ? size - first : 4, vectors);
  return diagonalise(eigenvalues, off, size, vectors, stride, cosine, sine);
}

}  // namespace
}  // namespace minerua::isa
