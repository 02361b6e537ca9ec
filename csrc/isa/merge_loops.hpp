/// @file merge_loops.hpp
/// Element-wise loops of `merge`. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>

#include "core/dtype.hpp"
#include "isa/conversions.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// Children whose sums one pass keeps in registers, so that every term is loaded once for all of them. Sums run over k in
/// order for each child by itself, so the choice never shows in the result.
#if defined(__AVX512F__)
constexpr std::size_t tile_children = 8;
#elif defined(__AVX__)
constexpr std::size_t tile_children = 4;
#else
constexpr std::size_t tile_children = 2;
#endif

template <DType dtype>
void read_terms(const void* source, const float* base, float* terms, std::size_t count) {
  const auto* const stored = static_cast<const typename Element<dtype>::Storage*>(source);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Floats group = Conversion<dtype>::load(stored + i);
    if (base != nullptr) group -= Floats::load(base + i);
    group.store(terms + i);
  }
  if (i == count) return;
  for (; i < count; ++i) terms[i] = base != nullptr ? Element<dtype>::load(stored[i]) - base[i]
                                                    : Element<dtype>::load(stored[i]);
  for (; i % lanes != 0; ++i) terms[i] = 0.0f;  // write_children computes whole groups
}

/// One group of elements, at `i`, of `tile` children; child p goes to `out` + p * out_stride.
template <DType dtype, std::size_t tile, bool has_base>
inline __attribute__((always_inline)) void write_group(const Sums& given, const float* coefficients, std::size_t i,
                                                       typename Element<dtype>::Storage* out, std::size_t out_stride) {
  Floats sums[tile];
  const Floats first = Floats::load(given.terms + i);
#pragma GCC unroll 8
  for (std::size_t p = 0; p < tile; ++p) {
    sums[p] = coefficients[p * given.terms_count] * first;
    if (has_base) sums[p] = Floats::load(given.base + i) + sums[p];
  }
  for (std::size_t k = 1; k < given.terms_count; ++k) {
    const Floats term = Floats::load(given.terms + k * given.stride + i);
#pragma GCC unroll 8
    for (std::size_t p = 0; p < tile; ++p) sums[p] += coefficients[p * given.terms_count + k] * term;
  }
#pragma GCC unroll 8
  for (std::size_t p = 0; p < tile; ++p) Conversion<dtype>::store(sums[p], out + p * out_stride);
}

template <DType dtype, std::size_t tile, bool has_base>
void write_tile(const Sums& given, std::size_t child, typename Element<dtype>::Storage* out, std::size_t out_stride) {
  using Storage = typename Element<dtype>::Storage;
  const float* const coefficients = given.coefficients + child * given.terms_count;
  Storage* const target = out + child * out_stride;
  const std::size_t whole = given.count / lanes * lanes;
  for (std::size_t i = 0; i < whole; i += lanes)
    write_group<dtype, tile, has_base>(given, coefficients, i, target + i, out_stride);
  if (whole == given.count) return;
  Storage last[tile * lanes];
  write_group<dtype, tile, has_base>(given, coefficients, whole, last, lanes);
  for (std::size_t p = 0; p < tile; ++p)
    __builtin_memcpy(target + p * out_stride + whole, last + p * lanes, (given.count - whole) * sizeof(Storage));
}

template <DType dtype, bool has_base>
void write_tiles(const Sums& given, typename Element<dtype>::Storage* out, std::size_t out_stride) {
  std::size_t child = 0;
  for (; child + tile_children <= given.children; child += tile_children)
    write_tile<dtype, tile_children, has_base>(given, child, out, out_stride);
  for (; child + 2 <= given.children; child += 2) write_tile<dtype, 2, has_base>(given, child, out, out_stride);
  if (child < given.children) write_tile<dtype, 1, has_base>(given, child, out, out_stride);
}

template <DType dtype>
void write_children(const Sums& given, void* out, std::size_t out_stride) {
  auto* const stored = static_cast<typename Element<dtype>::Storage*>(out);
  if (given.base != nullptr) return write_tiles<dtype, true>(given, stored, out_stride);
  write_tiles<dtype, false>(given, stored, out_stride);
}

}  // namespace
}  // namespace minerua::isa
