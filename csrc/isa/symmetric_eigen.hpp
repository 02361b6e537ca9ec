/// @file symmetric_eigen.hpp
/// Eigen-decomposition of a symmetric matrix: Householder tridiagonalisation, then implicit QL. Included only by the files
/// of this folder, inside their instruction set.
///
/// Source: Martin, Reinsch and Wilkinson, "Householder's tridiagonalization of a symmetric matrix" (1968); Dubrulle, Martin
/// and Wilkinson, "The implicit QL algorithm" (1968). Arranged so that every inner loop runs over contiguous rows and adds to
/// rows, never across them. One pass over the matrix applies a reflection and multiplies the next one's vector, which one row
/// is enough to know; the eigenvectors are the rows of the result, so a QL rotation mixes two rows, and a whole sweep is
/// applied to a strip of columns that stays in the first-level cache.
#pragma once

#include <cstddef>

#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// Below `negligible` an entry of a matrix of norm about 1 is nothing, and its square would underflow.
template <class Real>
struct Precision;

template <>
struct Precision<double> {
  static constexpr double epsilon = 2.220446049250313e-16, negligible = 1e-140;
};

template <>
struct Precision<float> {
  static constexpr float epsilon = 1.1920928955078125e-7f, negligible = 1e-12f;
};

constexpr int max_sweeps = 60;

inline double root_of(double square) { return __builtin_sqrt(square); }
inline float root_of(float square) { return __builtin_sqrtf(square); }
inline double size_of_number(double x) { return __builtin_fabs(x); }
inline float size_of_number(float x) { return __builtin_fabsf(x); }

/// Numbers in a cache line.
template <class Real>
constexpr std::size_t line = 64 / sizeof(Real);

/// Lines of a strip whose vectors stay in registers: the choice never shows in the result.
#if defined(__AVX512F__)
constexpr std::size_t strip_lines = 4;
#else
constexpr std::size_t strip_lines = 1;
#endif

template <class Real>
inline Line<Real> line_at(const Real* values, std::size_t i) {
  return Line<Real>::load(values + i);
}

/// Σ x[i] y[i] over `count` elements rounded up to a line; both must be zero, or their products harmless, beyond `count`.
template <class Real>
inline Real dot(const Real* x, const Real* y, std::size_t count) {
  Line<Real> even = {}, odd = {};
  std::size_t i = 0;
  for (; i + line<Real> < count; i += 2 * line<Real>) {
    even = multiply_add(line_at(x, i), line_at(y, i), even);
    odd = multiply_add(line_at(x, i + line<Real>), line_at(y, i + line<Real>), odd);
  }
  if (i < count) even = multiply_add(line_at(x, i), line_at(y, i), even);
  return sum_of(even + odd);
}

template <class Real>
inline void fill(Real* values, std::size_t begin, std::size_t end, Real value) {
  for (std::size_t i = begin; i < end; ++i) values[i] = value;
}

template <class Real>
inline Real hypotenuse(Real x, Real y) {
  const Real square = x * x + y * y;
  if (square > Precision<Real>::negligible * Precision<Real>::negligible) return root_of(square);
  const double wide = __builtin_hypot(static_cast<double>(x), static_cast<double>(y));
  return static_cast<Real>(wide);
}

/// Turns row `i` of the active block into a Householder vector v with (I - v vᵀ / h) x = (0, …, 0, beta); returns h, which
/// is 0 where there is nothing to do. The vector stays in the row, zero from column i on.
template <class Real>
inline Real householder_vector(Real* row, std::size_t i, std::size_t stride, Real* beta) {
  fill(row, i, stride, Real{0});
  const Real last = row[i - 1];
  row[i - 1] = Real{0};
  const Real rest = dot(row, row, i);
  *beta = last;
  if (rest < Precision<Real>::negligible * Precision<Real>::negligible) return Real{0};
  const Real norm = root_of(rest + last * last);
  *beta = last > Real{0} ? -norm : norm;
  row[i - 1] = last - *beta;
  return norm * (norm + size_of_number(last));  // = vᵀv / 2
}

/// One pass over rows [0, count) and a strip of columns: row j loses left[j] · across, and with `two_sided` also across2[j] ·
/// left's strip; then product += next[j] · row j.
template <class Real, std::size_t lines, bool two_sided>
inline void pass_over_strip(Real* a, std::size_t count, std::size_t stride, std::size_t column, const Real* left,
                            const Real* across, const Real* next, Real* product) {
  Line<Real> acrosses[lines], lefts[lines], sums[lines] = {};
#pragma GCC unroll 4
  for (std::size_t l = 0; l < lines; ++l) {
    acrosses[l] = line_at(across, column + l * line<Real>);
    if (two_sided) lefts[l] = line_at(left, column + l * line<Real>);
  }
  for (std::size_t j = 0; j < count; ++j) {
    Real* const row = a + j * stride + column;
    const Real by_left = -left[j], by_across = -across[j], by_next = next[j];
#pragma GCC unroll 4
    for (std::size_t l = 0; l < lines; ++l) {
      Line<Real> values = multiply_add(by_left, acrosses[l], line_at(row, l * line<Real>));
      if (two_sided) values = multiply_add(by_across, lefts[l], values);
      values.store(row + l * line<Real>);
      sums[l] = multiply_add(by_next, values, sums[l]);
    }
  }
#pragma GCC unroll 4
  for (std::size_t l = 0; l < lines; ++l) sums[l].store(product + column + l * line<Real>);
}

/// The same over columns [0, columns), rounded up to a line.
template <class Real, bool two_sided>
inline void pass_over_rows(Real* a, std::size_t count, std::size_t columns, std::size_t stride, const Real* left,
                           const Real* across, const Real* next, Real* product) {
  std::size_t column = 0;
  for (; column + (strip_lines - 1) * line<Real> < columns; column += strip_lines * line<Real>)
    pass_over_strip<Real, strip_lines, two_sided>(a, count, stride, column, left, across, next, product);
  for (; column < columns; column += line<Real>)
    pass_over_strip<Real, 1, two_sided>(a, count, stride, column, left, across, next, product);
}

/// Rows that the passes need beside a matrix.
template <class Real>
struct Rows {
  Real *off, *h, *product, *across, *cosine, *sine, *none;

  Rows(Real* scratch, std::size_t stride)
      : off(scratch),
        h(scratch + stride),
        product(scratch + 2 * stride),
        across(scratch + 3 * stride),
        cosine(scratch + 4 * stride),
        sine(scratch + 5 * stride),
        none(scratch + 6 * stride) {
    fill(none, 0, stride, Real{0});
  }
};

/// across = p - (vᵀp / 2h) v with p = A v / h, given A v in `product`; zeros where there is no reflection.
template <class Real>
inline void find_across(const Real* v, Real h, std::size_t i, std::size_t stride, Rows<Real>& rows) {
  fill(rows.across, 0, stride, Real{0});
  if (!(h > Real{0})) return;
  fill(rows.product, i, stride, Real{0});
  const Real share = dot(v, rows.product, i) / h / (h + h);
  for (std::size_t c = 0; c < i; c += line<Real>) {
    const Line<Real> scaled = (Real{1} / h) * line_at(rows.product, c);
    multiply_add(-share, line_at(v, c), scaled).store(rows.across + c);
  }
}

/// Reduces `a` to tridiagonal form: diagonal, off (off[i] couples i - 1 and i), and per row the h of its reflection, whose
/// vector v stays in that row of `a`. A reflection is A -= v qᵀ + q vᵀ on the leading block, q being `across`.
template <class Real>
inline void tridiagonalise(Real* a, std::size_t size, std::size_t stride, Real* diagonal, Rows<Real>& rows) {
  const auto reflect = [&](std::size_t i) {
    diagonal[i] = a[i * stride + i];
    rows.off[i] = rows.h[i] = Real{0};
    if (i > 0) rows.h[i] = householder_vector(a + i * stride, i, stride, &rows.off[i]);
  };
  reflect(size - 1);
  if (size > 1)
    pass_over_rows<Real, false>(a, size - 1, size - 1, stride, rows.none, rows.none, a + (size - 1) * stride, rows.product);
  for (std::size_t i = size - 1; i > 0; --i) {
    const Real* const v = a + i * stride;
    find_across(v, rows.h[i], i, stride, rows);
    Real* const next = a + (i - 1) * stride;
    for (std::size_t c = 0; c < i; c += line<Real>) {
      const Line<Real> values = multiply_add(-v[i - 1], line_at(rows.across, c), line_at(next, c));
      multiply_add(-rows.across[i - 1], line_at(v, c), values).store(next + c);
    }
    reflect(i - 1);
    if (i > 1) pass_over_rows<Real, true>(a, i - 1, i - 1, stride, v, rows.across, next, rows.product);
  }
}

/// Fills `vectors` with Q = H_(size - 1) … H_1, whose leading blocks grow by a row and a column with each reflection.
template <class Real>
inline void accumulate(const Real* a, std::size_t size, std::size_t stride, Rows<Real>& rows, Real* vectors) {
  fill(vectors, 0, size * stride, Real{0});
  vectors[0] = Real{1};
  for (std::size_t i = 1; i < size; ++i) {
    const Real* const v = a + i * stride;
    const Real* const next = i + 1 < size ? v + stride : rows.none;
    if (i == 1) fill(rows.product, 0, stride, Real{0}), rows.product[0] = v[0];
    fill(rows.across, 0, stride, Real{0});
    if (rows.h[i] > Real{0})
      for (std::size_t c = 0; c < i; c += line<Real>)
        ((Real{1} / rows.h[i]) * line_at(rows.product, c)).store(rows.across + c);
    pass_over_rows<Real, false>(vectors, i, i, stride, v, rows.across, next, rows.product);
    vectors[i * stride + i] = Real{1};
    fill(rows.product, i, stride, Real{0});
    rows.product[i] = next[i];
  }
}

template <class Real>
inline void transpose(Real* matrix, std::size_t size, std::size_t stride) {
  constexpr std::size_t tile = 16;
  for (std::size_t first = 0; first < size; first += tile)
    for (std::size_t second = 0; second <= first; second += tile)
      for (std::size_t i = first; i < first + tile && i < size; ++i)
        for (std::size_t j = second; j < second + tile && j < i; ++j) {
          const Real kept = matrix[i * stride + j];
          matrix[i * stride + j] = matrix[j * stride + i];
          matrix[j * stride + i] = kept;
        }
}

/// Applies rotations last - 1 … first, each mixing rows i and i + 1 of `vectors`, to one strip of columns.
template <class Real, std::size_t lines>
inline void rotate_strip(Real* vectors, std::size_t stride, std::size_t first, std::size_t last, const Real* cosine,
                         const Real* sine) {
  Line<Real> carried[lines];
  for (std::size_t l = 0; l < lines; ++l) carried[l] = line_at(vectors + last * stride, l * line<Real>);
  for (std::size_t i = last; i-- > first;) {
    Real* const row = vectors + i * stride;
    const Real c = cosine[i], s = sine[i];
#pragma GCC unroll 4
    for (std::size_t l = 0; l < lines; ++l) {
      const Line<Real> upper = line_at(row, l * line<Real>);
      multiply_add(s, upper, c * carried[l]).store(row + stride + l * line<Real>);
      carried[l] = multiply_add(c, upper, -s * carried[l]);
    }
  }
  for (std::size_t l = 0; l < lines; ++l) carried[l].store(vectors + first * stride + l * line<Real>);
}

template <class Real>
inline void rotate_rows(Real* vectors, std::size_t stride, std::size_t first, std::size_t last, const Real* cosine,
                        const Real* sine) {
  std::size_t column = 0;
  for (; column + 4 * line<Real> <= stride; column += 4 * line<Real>)
    rotate_strip<Real, 4>(vectors + column, stride, first, last, cosine, sine);
  for (; column < stride; column += line<Real>)
    rotate_strip<Real, 1>(vectors + column, stride, first, last, cosine, sine);
}

/// The first index m >= l at which the tridiagonal matrix falls apart; off[m + 1] couples m and m + 1.
template <class Real>
inline std::size_t end_of_block(const Real* diagonal, const Real* off, std::size_t l, std::size_t size) {
  std::size_t m = l;
  for (; m + 1 < size; ++m) {
    const Real neighbours = size_of_number(diagonal[m]) + size_of_number(diagonal[m + 1]);
    const Real coupling = size_of_number(off[m + 1]);
    if (coupling <= Precision<Real>::epsilon * neighbours || coupling < Precision<Real>::negligible) break;
  }
  return m;
}

/// One implicit QL sweep over the block l … m. Returns the index of the lowest rotation made: l, or more where the sweep
/// split the block on its way.
template <class Real>
inline std::size_t sweep(Real* d, Real* off, std::size_t l, std::size_t m, Real* cosine, Real* sine) {
  Real g = (d[l + 1] - d[l]) / (Real{2} * off[l + 1]);
  const Real root = hypotenuse(g, Real{1});
  g = d[m] - d[l] + off[l + 1] / (g < Real{0} ? g - root : g + root);  // Wilkinson's shift
  Real c{1}, s{1}, p{0};
  for (std::size_t i = m; i-- > l;) {
    const Real f = s * off[i + 1], b = c * off[i + 1];
    const Real r = hypotenuse(f, g);
    if (i + 2 <= m) off[i + 2] = r;
    if (!(r > Real{0})) {  // the block falls apart below i + 1
      d[i + 1] -= p;
      return i + 1;
    }
    const Real inverse = Real{1} / r;
    s = f * inverse;
    c = g * inverse;
    g = d[i + 1] - p;
    const Real t = (d[i] - g) * s + Real{2} * c * b;
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
template <class Real>
inline bool diagonalise(Real* d, std::size_t size, Real* vectors, std::size_t stride, Rows<Real>& rows) {
  for (std::size_t l = 0; l < size; ++l) {
    int sweeps = 0;
    for (std::size_t m = end_of_block(d, rows.off, l, size); m != l; m = end_of_block(d, rows.off, l, size)) {
      if (++sweeps > max_sweeps) return false;
      const std::size_t lowest = sweep(d, rows.off, l, m, rows.cosine, rows.sine);
      if (m + 1 < size) rows.off[m + 1] = Real{0};
      rotate_rows(vectors, stride, lowest, m, rows.cosine, rows.sine);
    }
  }
  return true;
}

template <class Real>
bool eigen(Real* a, std::size_t size, std::size_t stride, Real* eigenvalues, Real* vectors, Real* scratch) {
  Rows<Real> rows(scratch, stride);
  tridiagonalise(a, size, stride, eigenvalues, rows);
  accumulate(a, size, stride, rows, vectors);
  transpose(vectors, size, stride);
  return diagonalise(eigenvalues, size, vectors, stride, rows);
}

}  // namespace
}  // namespace minerua::isa
