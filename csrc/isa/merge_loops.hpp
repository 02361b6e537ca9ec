/// @file merge_loops.hpp
/// Element-wise loops of `merge`. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>

#include "core/dtype.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

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
  Floats low = coefficients[0] * Floats::load(terms);
  Floats high = coefficients[0] * Floats::load(terms + 16);
  if (has_base) {
    low = Floats::load(base) + low;
    high = Floats::load(base + 16) + high;
  }
  for (std::size_t k = 1; k < terms_count; ++k) {
    low += coefficients[k] * Floats::load(terms + k * stride);
    high += coefficients[k] * Floats::load(terms + k * stride + 16);
  }
  low.store(out);
  high.store(out + 16);
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
