/// @file merge_loops.hpp
/// Element-wise loops of `merge`. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>

#include "core/dtype.hpp"

namespace minerua::isa {
namespace {

/// Sixteen floats; arithmetic on it becomes whatever vectors the instruction set has. Unaligned, may alias.
typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));

template <DType dtype>
void load_elements(const void* source, float* __restrict__ target, std::size_t count) {
  const auto* stored = static_cast<const typename Element<dtype>::Storage*>(source);
  for (std::size_t i = 0; i < count; ++i) target[i] = Element<dtype>::load(stored[i]);
}

template <DType dtype>
void store_elements(const float* __restrict__ source, void* target, std::size_t count) {
  auto* stored = static_cast<typename Element<dtype>::Storage*>(target);
  for (std::size_t i = 0; i < count; ++i) stored[i] = Element<dtype>::store(source[i]);
}

void subtract(const float* __restrict__ base, float* __restrict__ values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] -= base[i];
}

/// One strip of 32 elements, its sums in registers through all k.
template <bool has_base>
inline void combine_strip(const float* base, const float* terms, std::size_t stride, const float* coefficients,
                          std::size_t terms_count, float* out) {
  const auto* first = reinterpret_cast<const Floats*>(terms);
  Floats low = first[0] * coefficients[0];
  Floats high = first[1] * coefficients[0];
  if (has_base) {
    const auto* start = reinterpret_cast<const Floats*>(base);
    low = start[0] + low;
    high = start[1] + high;
  }
  for (std::size_t k = 1; k < terms_count; ++k) {
    const auto* term = reinterpret_cast<const Floats*>(terms + k * stride);
    low += term[0] * coefficients[k];
    high += term[1] * coefficients[k];
  }
  auto* target = reinterpret_cast<Floats*>(out);
  target[0] = low;
  target[1] = high;
}

void combine(const float* base, const float* terms, std::size_t stride, const float* coefficients,
             std::size_t terms_count, float* out, std::size_t count) {
  if (base != nullptr) {
    for (std::size_t i = 0; i < count; i += 32)
      combine_strip<true>(base + i, terms + i, stride, coefficients, terms_count, out + i);
  } else {
    for (std::size_t i = 0; i < count; i += 32)
      combine_strip<false>(nullptr, terms + i, stride, coefficients, terms_count, out + i);
  }
}

}  // namespace
}  // namespace minerua::isa
