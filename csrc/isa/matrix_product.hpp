/// @file matrix_product.hpp
/// Matrix product in registers. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>

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

inline void multiply_tile(const double* a, std::size_t a_row, std::size_t a_depth, const double* b,
                          std::size_t b_depth, double* c, std::size_t c_row, std::size_t depth) {
  Doubles sums[tile_rows] = {};
  for (std::size_t k = 0; k < depth; ++k) {
    const Doubles row = Doubles::load(b + k * b_depth);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < tile_rows; ++i) sums[i] += a[i * a_row + k * a_depth] * row;
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < tile_rows; ++i) sums[i].store(c + i * c_row);
}

void multiply(const double* a, std::size_t a_row, std::size_t a_depth, const double* b, std::size_t b_depth, double* c,
              std::size_t c_row, std::size_t rows, std::size_t columns, std::size_t depth) {
  for (std::size_t j = 0; j < columns; j += 8)
    for (std::size_t i = 0; i < rows; i += tile_rows)
      multiply_tile(a + i * a_row, a_row, a_depth, b + j, b_depth, c + i * c_row + j, c_row, depth);
}

}  // namespace
}  // namespace minerua::isa
