/// @file matrix_product.hpp
/// Matrix product in registers. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>

#include "isa/loops.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// Rows and cache lines of C that one pass keeps in registers: as many as the instruction set has room for. Sums run over k in order, so
/// the choice never shows in the result.
#if defined(__AVX512F__)
constexpr std::size_t tile_rows = 8, tile_lines = 2;
#elif defined(__AVX__)
constexpr std::size_t tile_rows = 4, tile_lines = 1;
#else
constexpr std::size_t tile_rows = 2, tile_lines = 1;
#endif

template <class Real, std::size_t lines>
inline void multiply_tile(const Real* a, std::size_t a_row, std::size_t a_depth, const Real* b, std::size_t b_depth, Real* c,
                          std::size_t c_row, std::size_t depth) {
  constexpr std::size_t width = 64 / sizeof(Real);
  Line<Real> sums[tile_rows][lines] = {};
  for (std::size_t k = 0; k < depth; ++k) {
    Line<Real> row[lines];
#pragma GCC unroll 2
    for (std::size_t l = 0; l < lines; ++l) row[l] = Line<Real>::load(b + k * b_depth + l * width);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < tile_rows; ++i)
#pragma GCC unroll 2
      for (std::size_t l = 0; l < lines; ++l)
        sums[i][l] = multiply_add(a[i * a_row + k * a_depth], row[l], sums[i][l]);
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < tile_rows; ++i)
#pragma GCC unroll 2
    for (std::size_t l = 0; l < lines; ++l) sums[i][l].store(c + i * c_row + l * width);
}

template <class Real>
void multiply(const MatrixProduct<Real>& given) {
  constexpr std::size_t width = 64 / sizeof(Real);
  const auto multiply_strip = [&given](auto multiply, std::size_t j) {
    for (std::size_t i = given.is_symmetric ? j / tile_rows * tile_rows : 0; i < given.rows; i += tile_rows)
      multiply(given.a + i * given.a_row, given.a_row, given.a_depth, given.b + j, given.b_depth,
               given.c + i * given.c_row + j, given.c_row, given.depth);
  };
  std::size_t j = 0;
  for (; j + tile_lines * width <= given.columns; j += tile_lines * width)
    multiply_strip(multiply_tile<Real, tile_lines>, j);
  for (; j < given.columns; j += width) multiply_strip(multiply_tile<Real, 1>, j);
  if (!given.is_symmetric) return;
  for (std::size_t i = 0; i < given.rows; ++i)
    for (std::size_t j = i + 1; j < given.rows; ++j) given.c[i * given.c_row + j] = given.c[j * given.c_row + i];
}

}  // namespace
}  // namespace minerua::isa
