/// @file pass_loops.hpp
/// Loops that the passes over tensors share: reading with a count of what is not finite, low-rank products, inner products,
/// copies past the caches. Included only by the files of this folder, inside their instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"
#include "isa/conversions.hpp"
#include "isa/terms.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// How an element type's bits say that a number is not finite: its exponent is all ones.
template <DType dtype>
struct Exponent {
  using Bits = std::uint16_t;
  typedef std::int16_t Lanes __attribute__((vector_size(native_bytes)));
  static constexpr std::int16_t mask = dtype == DType::bfloat16 ? 0x7f80 : 0x7c00, magnitude = 0x7fff;
};

template <>
struct Exponent<DType::float32> {
  using Bits = std::uint32_t;
  typedef std::int32_t Lanes __attribute__((vector_size(native_bytes)));
  static constexpr std::int32_t mask = 0x7f800000, magnitude = 0x7fffffff;
};

/// The largest magnitude seen in every lane, as bits: one comparison at the end tells whether anything was not finite, and
/// only then somebody has to count.
template <DType dtype>
struct LargestBits {
  using Lanes = typename Exponent<dtype>::Lanes;
  static constexpr std::size_t width = native_bytes / sizeof(typename Exponent<dtype>::Bits);
  Lanes largest = {};

  inline void see(const Lanes& bits) {
    const Lanes magnitudes = bits & Exponent<dtype>::magnitude;
    largest = magnitudes > largest ? magnitudes : largest;
  }

  /// Looks at `count` stored numbers, a multiple of `width`.
  inline void see_all(const void* values, std::size_t count) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < count; i += width) {
      Lanes bits;
      __builtin_memcpy(&bits, static_cast<const typename Exponent<dtype>::Bits*>(values) + i, sizeof bits);
      see(bits);
    }
  }

  inline bool is_finite() const {
    bool holds = true;
    for (std::size_t lane = 0; lane < width; ++lane) holds &= largest[lane] < Exponent<dtype>::mask;
    return holds;
  }
};

template <DType dtype>
std::size_t count_not_finite(const void* values, std::size_t count) {
  using Of = Exponent<dtype>;
  constexpr std::size_t width = native_bytes / sizeof(typename Of::Bits);
  const auto* const stored = static_cast<const typename Of::Bits*>(values);
  LargestBits<dtype> seen;
  std::size_t i = 0, total = 0;
  for (; i + width <= count; i += width) seen.see_all(stored + i, width);
  for (i = seen.is_finite() ? i : 0; i < count; ++i) total += (stored[i] & Of::mask) == Of::mask;
  return total;
}

template <DType dtype, bool has_base>
std::size_t read_counted(const typename Element<dtype>::Storage* stored, const float* base, float* terms,
                         std::size_t count) {
  LargestBits<DType::float32> seen;
  std::size_t i = 0, not_finite = 0;
  for (; i + lanes <= count; i += lanes) {
    // What the next tile will read: every tile is too short a stream for the machine to see where it leads. A prefetch
    // beyond the end of the memory does nothing.
    __builtin_prefetch(stored + i + count);
    Floats group = Conversion<dtype>::load(stored + i);
#pragma GCC unroll 4
    for (std::size_t part = 0; part < Floats::parts; ++part)
      seen.see((LargestBits<DType::float32>::Lanes)group.part[part]);
    if (has_base) group -= Floats::load(base + i);
    group.store(terms + i);
  }
  if (!seen.is_finite()) not_finite = count_not_finite<dtype>(stored, i);
  for (; i < count; ++i) {
    const float value = Element<dtype>::load(stored[i]);
    not_finite += count_not_finite<DType::float32>(&value, 1);
    terms[i] = has_base ? value - base[i] : value;
  }
  for (; i % lanes != 0; ++i) terms[i] = 0.0f;
  return not_finite;
}

template <DType dtype>
std::size_t read_terms_counted(const void* source, const float* base, float* terms, std::size_t count) {
  const auto* const stored = static_cast<const typename Element<dtype>::Storage*>(source);
  if (base == nullptr) return read_counted<dtype, false>(stored, nullptr, terms, count);
  return read_counted<dtype, true>(stored, base, terms, count);
}

template <DType dtype>
void read_values(const void* source, float* values, std::size_t count) {
  const auto* const stored = static_cast<const typename Element<dtype>::Storage*>(source);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) Conversion<dtype>::load(stored + i).store(values + i);
  for (; i < count; ++i) values[i] = Element<dtype>::load(stored[i]);
}

/// Four groups at a time, so that additions do not wait for one another.
template <std::size_t groups>
inline void add_products_to(float* values, const float* left, std::size_t rank, const float* right, std::size_t stride) {
  Floats sums[groups];
#pragma GCC unroll 4
  for (std::size_t g = 0; g < groups; ++g) sums[g] = Floats::load(values + g * lanes);
  for (std::size_t r = 0; r < rank; ++r)
#pragma GCC unroll 4
    for (std::size_t g = 0; g < groups; ++g) sums[g] += left[r] * Floats::load(right + r * stride + g * lanes);
#pragma GCC unroll 4
  for (std::size_t g = 0; g < groups; ++g) sums[g].store(values + g * lanes);
}

void add_products(float* values, const float* left, std::size_t rank, const float* right, std::size_t stride,
                  std::size_t count) {
  std::size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) add_products_to<4>(values + i, left, rank, right + i, stride);
  for (; i + lanes <= count; i += lanes) add_products_to<1>(values + i, left, rank, right + i, stride);
  for (; i < count; ++i)
    for (std::size_t r = 0; r < rank; ++r) values[i] += left[r] * right[r * stride + i];
}

/// Eight floats in double precision.
inline Doubles widened(const float* values) {
  typedef float Narrow __attribute__((vector_size(native_bytes / 2)));
  Doubles wide;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < Doubles::parts; ++i) {
    Narrow narrow;
    __builtin_memcpy(&narrow, values + i * Doubles::width, sizeof narrow);
    wide.part[i] = __builtin_convertvector(narrow, Doubles::Native);
  }
  return wide;
}

/// Products of row k with rows l to l + width.
template <std::size_t width>
inline void add_products_of(const float* terms, std::size_t stride, std::size_t k, std::size_t l, std::size_t count,
                            double* sums) {
  Doubles totals[width] = {};
  for (std::size_t i = 0; i < count; i += 8) {
    const Doubles left = widened(terms + k * stride + i);
#pragma GCC unroll 4
    for (std::size_t j = 0; j < width; ++j) totals[j] += left * widened(terms + (l + j) * stride + i);
  }
  for (std::size_t j = 0; j < width; ++j) sums[l + j] += sum_of(totals[j]);
}

/// total + x · y with x and y widened from floats: their product is exact, so that adding it at once rounds no differently.
inline Doubles sum_of_product(const Doubles& total, const Doubles& x, const Doubles& y) {
#if defined(__AVX512F__)
  const auto sum = _mm512_fmadd_pd((__m512d)x.part[0], (__m512d)y.part[0], (__m512d)total.part[0]);
  return {{(Doubles::Native)sum}};
#else
  return total + x * y;
#endif
}

/// All products of a few rows with one another: every row is widened once. The sums are those of `add_products_of`.
template <std::size_t rows>
inline void add_all_products(const float* terms, std::size_t stride, std::size_t count, double* sums) {
  Doubles totals[rows * (rows + 1) / 2] = {};
  for (std::size_t i = 0; i < count; i += 8) {
    Doubles wide[rows];
#pragma GCC unroll 4
    for (std::size_t k = 0; k < rows; ++k) wide[k] = widened(terms + k * stride + i);
    std::size_t pair = 0;
#pragma GCC unroll 4
    for (std::size_t k = 0; k < rows; ++k)
#pragma GCC unroll 4
      for (std::size_t l = k; l < rows; ++l, ++pair) totals[pair] = sum_of_product(totals[pair], wide[k], wide[l]);
  }
  std::size_t pair = 0;
  for (std::size_t k = 0; k < rows; ++k)
    for (std::size_t l = k; l < rows; ++l) sums[k * rows + l] += sum_of(totals[pair++]);
}

void add_inner_products(const float* terms, std::size_t stride, std::size_t terms_count, std::size_t count,
                        double* sums) {
  if (terms_count == 2) return add_all_products<2>(terms, stride, count, sums);
  if (terms_count == 3) return add_all_products<3>(terms, stride, count, sums);
  for (std::size_t k = 0; k < terms_count; ++k) {
    double* const row = sums + k * terms_count;
    std::size_t l = k;
    for (; l + 4 <= terms_count; l += 4) add_products_of<4>(terms, stride, k, l, count, row);
    for (; l < terms_count; ++l) add_products_of<1>(terms, stride, k, l, count, row);
  }
}

template <DType dtype, std::size_t rows>
inline void add_all_stored_products(const isa::StoredSums& given, double* sums) {
  Doubles totals[rows * (rows + 1) / 2] = {};
  for (std::size_t i = 0; i < given.count; i += lanes) {
    Doubles wide[2][rows];
#pragma GCC unroll 4
    for (std::size_t k = 0; k < rows; ++k) {
      const TermReader<dtype> terms(given.sources[k], given.base, given.count);
      widen(i + lanes <= given.count ? terms.group(i) : terms.last_group(i), wide[0][k], wide[1][k]);
    }
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      std::size_t pair = 0;
#pragma GCC unroll 4
      for (std::size_t k = 0; k < rows; ++k)
#pragma GCC unroll 4
        for (std::size_t l = k; l < rows; ++l, ++pair)
          totals[pair] = sum_of_product(totals[pair], wide[half][k], wide[half][l]);
    }
  }
  std::size_t pair = 0;
  for (std::size_t k = 0; k < rows; ++k)
    for (std::size_t l = k; l < rows; ++l) sums[k * rows + l] += sum_of(totals[pair++]);
}

template <DType dtype>
void add_stored_products(const StoredSums& given, double* sums) {
  if (given.count_of_sources == 2) return add_all_stored_products<dtype, 2>(given, sums);
  add_all_stored_products<dtype, 3>(given, sums);
}

void copy_past_caches(void* to, const void* from, std::size_t bytes) {
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
#if defined(__SSE2__)
  constexpr std::size_t line = 64;
  const std::size_t head = (line - reinterpret_cast<std::uintptr_t>(target) % line) % line;
  if (head <= bytes) {
    __builtin_memcpy(target, source, head);
    target += head, source += head, bytes -= head;
    for (; bytes >= line; target += line, source += line, bytes -= line) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_loadu_si512(source));
#else
      for (std::size_t i = 0; i < line; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(target + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i)));
#endif
    }
  }
#endif
  __builtin_memcpy(target, source, bytes);
}

}  // namespace
}  // namespace minerua::isa
