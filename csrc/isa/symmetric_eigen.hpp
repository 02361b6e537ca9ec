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

#include "isa/loops.hpp"
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

inline double fused(double x, double y, double z) { return __builtin_fma(x, y, z); }
inline float fused(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
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

static_assert(eigen_scratch_rows == 14, "as many rows as Rows has");

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
  const Real square = fused(x, x, y * y);
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

/// What one pass does to every row j: it loses factors[c][j] · across[c] for one or two changes c; then products[p] gains
/// next[p][j] · row j for one or two products p.
template <class Real>
struct Pass {
  const Real *factors[2], *across[2], *next[2];
  Real* products[2];
};

/// A pass over rows [0, count) of a strip of columns.
template <class Real, std::size_t lines, std::size_t changes, std::size_t products>
inline void pass_over_strip(const Pass<Real>& pass, Real* a, std::size_t count, std::size_t stride, std::size_t column) {
  Line<Real> across[changes][lines], sums[products][lines] = {};
#pragma GCC unroll 4
  for (std::size_t l = 0; l < lines; ++l)
#pragma GCC unroll 2
    for (std::size_t c = 0; c < changes; ++c) across[c][l] = line_at(pass.across[c], column + l * line<Real>);
  for (std::size_t j = 0; j < count; ++j) {
    Real* const row = a + j * stride + column;
#pragma GCC unroll 4
    for (std::size_t l = 0; l < lines; ++l) {
      Line<Real> values = line_at(row, l * line<Real>);
#pragma GCC unroll 2
      for (std::size_t c = 0; c < changes; ++c) values = multiply_add(-pass.factors[c][j], across[c][l], values);
      values.store(row + l * line<Real>);
#pragma GCC unroll 2
      for (std::size_t p = 0; p < products; ++p) sums[p][l] = multiply_add(pass.next[p][j], values, sums[p][l]);
    }
  }
#pragma GCC unroll 4
  for (std::size_t l = 0; l < lines; ++l)
#pragma GCC unroll 2
    for (std::size_t p = 0; p < products; ++p) sums[p][l].store(pass.products[p] + column + l * line<Real>);
}

/// The same over columns [0, columns), rounded up to a line.
template <class Real, std::size_t changes, std::size_t products>
inline void pass_over_rows(const Pass<Real>& given, Real* a, std::size_t count, std::size_t columns, std::size_t stride) {
  const Pass<Real> pass = given;  // a copy: no row can be part of it
  std::size_t column = 0;
  for (; column + (strip_lines - 1) * line<Real> < columns; column += strip_lines * line<Real>)
    pass_over_strip<Real, strip_lines, changes, products>(pass, a, count, stride, column);
  for (; column < columns; column += line<Real>)
    pass_over_strip<Real, 1, changes, products>(pass, a, count, stride, column);
}

/// Rows that the passes need beside a matrix.
template <class Real>
struct Rows {
  Real *off, *h, *products[2], *across[2], *none, *carried, *factors[2];

  Rows(Real* scratch, std::size_t stride)
      : off(scratch),
        h(scratch + stride),
        products{scratch + 2 * stride, scratch + 3 * stride},
        across{scratch + 4 * stride, scratch + 5 * stride},
        none(scratch + 6 * stride),
        carried(scratch + 7 * stride),
        factors{scratch + 8 * stride, scratch + 11 * stride} {
    fill(none, 0, stride, Real{0});
  }
};

/// across = p - (vᵀp / 2h) v with p = A v / h, given A v in `product`; zeros where there is no reflection.
template <class Real>
inline void find_across(const Real* v, Real h, std::size_t i, std::size_t stride, Rows<Real>& rows) {
  Real* const product = rows.products[0];
  Real* const across = rows.across[0];
  fill(across, 0, stride, Real{0});
  if (!(h > Real{0})) return;
  fill(product, i, stride, Real{0});
  const Real share = dot(v, product, i) / h / (h + h);
  for (std::size_t c = 0; c < i; c += line<Real>) {
    const Line<Real> scaled = (Real{1} / h) * line_at(product, c);
    multiply_add(-share, line_at(v, c), scaled).store(across + c);
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
  const Pass<Real> first{{rows.none, nullptr}, {rows.none, nullptr}, {a + (size - 1) * stride, nullptr},
                         {rows.products[0], nullptr}};
  pass_over_rows<Real, 1, 1>(first, a, size - 1, size - 1, stride);
  for (std::size_t i = size - 1; i > 0; --i) {
    const Real* const v = a + i * stride;
    const Real* const across = rows.across[0];
    find_across(v, rows.h[i], i, stride, rows);
    Real* const next = a + (i - 1) * stride;
    for (std::size_t c = 0; c < i; c += line<Real>) {
      const Line<Real> values = multiply_add(-v[i - 1], line_at(across, c), line_at(next, c));
      multiply_add(-across[i - 1], line_at(v, c), values).store(next + c);
    }
    reflect(i - 1);
    const Pass<Real> both{{v, across}, {across, v}, {next, nullptr}, {rows.products[0], nullptr}};
    pass_over_rows<Real, 2, 1>(both, a, i - 1, i - 1, stride);
  }
}

/// out = factor · x over whole lines of the first `count`, zero beyond.
template <class Real>
inline void write_multiple(Real factor, const Real* x, std::size_t count, std::size_t stride, Real* out) {
  fill(out, 0, stride, Real{0});
  for (std::size_t c = 0; c < count; c += line<Real>) (factor * line_at(x, c)).store(out + c);
}

/// Fills `vectors` with Q = H_(size - 1) … H_1, whose leading blocks grow by a row and a column with each reflection. Two
/// reflections go into one pass: what the second one's vector meets after the first is known from what both meet before.
template <class Real>
inline void accumulate(const Real* a, std::size_t size, std::size_t stride, Rows<Real>& rows, Real* vectors) {
  fill(vectors, 0, size * stride, Real{0});
  const auto vector = [&](std::size_t i) { return i < size ? a + i * stride : rows.none; };
  const auto inverse = [&](std::size_t i) { return i < size && rows.h[i] > Real{0} ? Real{1} / rows.h[i] : Real{0}; };
  vectors[0] = Real{1};
  for (std::size_t p = 0; p < 2; ++p) {
    fill(rows.products[p], 0, stride, Real{0});
    rows.products[p][0] = vector(1 + p)[0];
  }
  for (std::size_t i = 1; i < size; i += 2) {
    const Real *const v = vector(i), *const second = vector(i + 1);
    write_multiple(inverse(i), rows.products[0], i, stride, rows.across[0]);
    const Real cross = dot(second, v, i);
    for (std::size_t c = 0; c < i; c += line<Real>)
      multiply_add(-cross, line_at(rows.across[0], c), line_at(rows.products[1], c)).store(rows.products[1] + c);
    rows.products[1][i] = second[i];
    write_multiple(inverse(i + 1), rows.products[1], i + 1, stride, rows.across[1]);
    const Pass<Real> pass{{v, second}, {rows.across[0], rows.across[1]}, {vector(i + 2), vector(i + 3)},
                          {rows.products[0], rows.products[1]}};
    pass_over_rows<Real, 2, 2>(pass, vectors, i, i + 1, stride);
    Real* const own = vectors + i * stride;
    write_multiple(-second[i], rows.across[1], i + 1, stride, own);
    own[i] += Real{1};
    if (i + 1 < size) vectors[(i + 1) * stride + i + 1] = Real{1};
    for (std::size_t p = 0; p < 2; ++p) {
      fill(rows.products[p], i + 1, stride, Real{0});
      for (std::size_t c = 0; c < i + 1; c += line<Real>)
        multiply_add(pass.next[p][i], line_at(own, c), line_at(rows.products[p], c)).store(rows.products[p] + c);
      if (i + 1 < size) rows.products[p][i + 1] = pass.next[p][i + 1];
    }
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

/// The rotations of one sweep: number i, from last - 1 down to first, mixes rows i and i + 1. What is carried from one to the
/// next is kept as a multiple of a row k, so that a rotation takes three operations instead of four:
/// row i + 1 = sines[i] · row i + cosines[i] · k, then k = row i + carries[i] · k, and after the last one row first = scale · k.
template <class Real>
struct Sweep {
  Real *sines, *cosines, *carries;
  std::size_t first, last;
  Real scale;
};

/// A sweep that is being applied to the rows of the vectors, a rotation at a time: while the numbers of the next sweep are
/// found, one waiting for another, the machine has its arithmetic units free for this.
template <class Real>
class SweepAtWork {
 public:
  SweepAtWork(Real* vectors, std::size_t stride, Real* carried) : vectors_(vectors), carried_(carried), stride_(stride) {}

  /// Begins with another sweep; the one before must be finished.
  void start(const Sweep<Real>& sweep) {
    sweep_ = sweep;
    place_ = sweep.last;
    for (std::size_t c = 0; c < stride_; c += line<Real>) line_at(vectors_ + place_ * stride_, c).store(carried_ + c);
  }

  /// Applies the next rotation, if there is one left.
  inline __attribute__((always_inline)) void step() {
    if (place_ == sweep_.first) return;
    --place_;
    Real* const row = vectors_ + place_ * stride_;
    const Real c = sweep_.cosines[place_], s = sweep_.sines[place_], carry = sweep_.carries[place_];
#pragma GCC unroll 2
    for (std::size_t column = 0; column < stride_; column += line<Real>) {
      const Line<Real> upper = line_at(row, column), carried = line_at(carried_, column);
      multiply_add(c, carried, s * upper).store(row + stride_ + column);
      multiply_add(carry, carried, upper).store(carried_ + column);
    }
    if (place_ > sweep_.first) return;
    for (std::size_t column = 0; column < stride_; column += line<Real>)
      (sweep_.scale * line_at(carried_, column)).store(row + column);
  }

  void finish() {
    while (place_ != sweep_.first) step();
  }

 private:
  Real* const vectors_;
  Real* const carried_;
  const std::size_t stride_;
  Sweep<Real> sweep_{};
  std::size_t place_ = 0;
};

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

/// One implicit QL sweep over the block l … m, written to `out`, whose first row is l, or more where the sweep split the block
/// on its way. Meanwhile the sweep before it is applied.
template <class Real>
inline void make_sweep(Real* d, Real* off, std::size_t l, std::size_t m, Sweep<Real>& out, SweepAtWork<Real>& before) {
  Real g = (d[l + 1] - d[l]) / (Real{2} * off[l + 1]);
  const Real root = hypotenuse(g, Real{1});
  g = d[m] - d[l] + off[l + 1] / (g < Real{0} ? g - root : g + root);  // Wilkinson's shift
  Real c{1}, s{1}, p{0}, scale{1};
  out.last = m;
  out.first = l;
  for (std::size_t i = m; i-- > l;) {
    before.step();
    const Real f = s * off[i + 1], b = c * off[i + 1];
    const Real r = hypotenuse(g, f);
    if (i + 2 <= m) off[i + 2] = r;
    if (!(r > Real{0})) {  // the block falls apart below i + 1
      d[i + 1] -= p;
      out.first = i + 1;
      out.scale = scale;
      return;
    }
    const Real inverse = Real{1} / r;
    s = f * inverse;
    c = g * inverse;
    g = d[i + 1] - p;
    const Real t = fused(d[i] - g, s, Real{2} * c * b);
    p = s * t;
    d[i + 1] = g + p;
    g = fused(c, t, -b);
    out.sines[i] = s;
    out.cosines[i] = c * scale;
    const Real carried = size_of_number(c) > Precision<Real>::negligible ? c : Precision<Real>::negligible;
    out.carries[i] = -s * scale / carried;
    scale = carried;
  }
  d[l] -= p;
  off[l + 1] = g;
  out.scale = scale;
}

/// Diagonalises the tridiagonal matrix and turns the rows of `vectors` along with it.
template <class Real>
inline bool diagonalise(Real* d, std::size_t size, Real* vectors, std::size_t stride, Rows<Real>& rows) {
  SweepAtWork<Real> before(vectors, stride, rows.carried);
  std::size_t count = 0;
  for (std::size_t l = 0; l < size; ++l) {
    int sweeps = 0;
    for (std::size_t m = end_of_block(d, rows.off, l, size); m != l; m = end_of_block(d, rows.off, l, size)) {
      if (++sweeps > max_sweeps) return false;
      Real* const own = rows.factors[count++ % 2];
      Sweep<Real> sweep{own, own + stride, own + 2 * stride, 0, 0, Real{1}};
      make_sweep(d, rows.off, l, m, sweep, before);
      if (m + 1 < size) rows.off[m + 1] = Real{0};
      before.finish();
      before.start(sweep);
    }
  }
  before.finish();
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
