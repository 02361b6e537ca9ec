/// @file matrix_product.hpp
/// Matrix product in registers. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>

#include "isa/loops.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// Rows of C that one pass keeps in registers: as many as the instruction set has room for. Sums run over k in order, so
/// the choice never shows in the result.
#if defined(__AVX512F__)
constexpr std::size_t tile_rows = 8;
#elif defined(__AVX__)
constexpr std::size_t tile_rows = 4;
#else
constexpr std::size_t tile_rows = 2;
#endif

template <class Real>
inline void multiply_tile(const Real* a, std::size_t a_row, std::size_t a_depth, const Real* b, std::size_t b_depth, Real* c,
                          std::size_t c_row, std::size_t depth) {
  Line<Real> sums[tile_rows] = {};
  for (std::size_t k = 0; k < depth; ++k) {
    const auto row = Line<Real>::load(b + k * b_depth);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < tile_rows; ++i) sums[i] = multiply_add(a[i * a_row + k * a_depth], row, sums[i]);
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < tile_rows; ++i) sums[i].store(c + i * c_row);
}

template <class Real>
void multiply(const MatrixProduct<Real>& given) {
  constexpr std::size_t width = 64 / sizeof(Real);
  for (std::size_t j = 0; j < given.columns; j += width) {
    const std::size_t first = given.is_symmetric ? j / tile_rows * tile_rows : 0;
    for (std::size_t i = first; i < given.rows; i += tile_rows)
      multiply_tile(given.a + i * given.a_row, given.a_row, given.a_depth, given.b + j, given.b_depth,
                    given.c + i * given.c_row + j, given.c_row, given.depth);
  }
  if (!given.is_symmetric) return;
  for (std::size_t i = 0; i < given.rows; ++i)
    for (std::size_t j = i + 1; j < given.rows; ++j) given.c[i * given.c_row + j] = given.c[j * given.c_row + i];
}

}  // namespace
}  // namespace minerua::isa
