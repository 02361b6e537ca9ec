/// @file mask_loops.hpp
/// Loops over masked task vectors: what is kept, how large it is, and what becomes of it. Included only by the files of this
/// folder, inside their instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/conversions.hpp"
#include "isa/key_loops.hpp"
#include "isa/loops.hpp"
#include "isa/pass_loops.hpp"
#include "isa/philox.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

typedef Floats::Native NativeFloats;

inline NativeFloats load_native(const float* source) {
  NativeFloats values;
  __builtin_memcpy(&values, source, sizeof values);
  return values;
}

inline Words load_words(const std::uint32_t* source) {
  Words words;
  __builtin_memcpy(&words, source, sizeof words);
  return words;
}

/// Whether words fall below floor(p · 2^32). Twice floor(p · 2^31) and the bit below it are exact, where a conversion to 32
/// unsigned bits is not to be had everywhere. NaN and what is below zero keep nothing.
inline Keys below_share(const Words& words, const NativeFloats& p) {
  const NativeFloats bounded = p > 0.0f ? p : NativeFloats{};
  const NativeFloats scaled = bounded * 0x1p31f;
  const Keys half = __builtin_convertvector(scaled < 0x1p31f ? scaled : NativeFloats{}, Keys);
  const NativeFloats rest = scaled - __builtin_convertvector(half, NativeFloats);
  const Words limit = ((Words)half << 1) + (Words)((rest >= 0.5f) & 1);
  return (Keys)(words < limit) | (p >= 1.0f);
}

void draw_bits(const RandomStream& stream, std::uint64_t first_block, std::size_t blocks, std::uint32_t limit,
               std::uint64_t* bits) {
  constexpr std::size_t together = 16;
  std::uint32_t words[64 * together];
  for (std::size_t block = 0; block < blocks; block += together) {
    const std::size_t count = blocks - block < together ? blocks - block : together;
    random_words(stream, first_block + block, count, words);
    for (std::size_t b = 0; b < count; ++b) {
      std::uint64_t drawn = 0;
#if defined(__AVX512F__)
      const __m512i below = _mm512_set1_epi32(static_cast<int>(limit));
      for (std::size_t w = 0; w < 4; ++w) {
        const __m512i group = _mm512_loadu_si512(words + 64 * b + 16 * w);
        drawn |= static_cast<std::uint64_t>(_mm512_cmplt_epu32_mask(group, below)) << (16 * w);
      }
#else
      for (std::size_t i = 0; i < 64; ++i) drawn |= static_cast<std::uint64_t>(words[64 * b + i] < limit) << i;
#endif
      bits[block + b] = drawn;
    }
  }
}

/// A number whose bits from the lowest on are those of the elements from `first` on, as many as a native vector has lanes.
inline std::uint32_t bits_from(const std::uint64_t* bits, std::size_t first) {
  const std::size_t place = first / 64, shift = first % 64;
  std::uint64_t window = bits[place] >> shift;
  if (shift + Floats::width > 64) window |= bits[place + 1] << (64 - shift);
  return static_cast<std::uint32_t>(window);
}

/// What must be looked at besides random words: nothing, one key, or two keys and where their budgets end.
enum class Limits { none, top, both };

template <Limits limits, RandomKind kind>
void mask_groups(const MaskedTile given, float* terms, std::size_t count) {  // a copy: the terms cannot alias it
  Keys index;
  for (std::size_t lane = 0; lane < Floats::width; ++lane) index[lane] = static_cast<std::int32_t>(lane);
  const Words lanes_in_order = (Words)index;
  for (std::size_t i = 0; i < count; i += Floats::width, index += static_cast<std::int32_t>(Floats::width)) {
    // One selection after another: a condition of several would leave the mask registers.
    NativeFloats values = load_native(terms + i);
    const Keys keys = keys_of(terms + i);
    if (given.inverse)
      values /= kind == RandomKind::ranked ? load_native(given.probabilities + i) : given.probability + NativeFloats{};
    if (limits == Limits::top) values = keys > given.top.key ? values : NativeFloats{};
    if (limits == Limits::both) {
      values = keys > given.top.key + (index < given.top.cut) ? values : NativeFloats{};
      values = keys > given.but.key + (index < given.but.cut) ? NativeFloats{} : values;
    }
    if (kind == RandomKind::drawn) {
      const Words chosen = ((Words{} + bits_from(given.bits, given.first_bit + i)) >> lanes_in_order) & 1u;
      values = chosen != 0u ? values : NativeFloats{};
    }
    if (kind == RandomKind::even) values = load_words(given.words + i) < given.limit ? values : NativeFloats{};
    if (kind == RandomKind::ranked)
      values = below_share(load_words(given.words + i), load_native(given.probabilities + i)) ? values : NativeFloats{};
    __builtin_memcpy(terms + i, &values, sizeof values);
  }
}

template <Limits limits>
void mask_terms_of(const MaskedTile& given, float* terms, std::size_t count) {
  switch (given.kind) {
    case RandomKind::none: return mask_groups<limits, RandomKind::none>(given, terms, count);
    case RandomKind::even: return mask_groups<limits, RandomKind::even>(given, terms, count);
    case RandomKind::ranked: return mask_groups<limits, RandomKind::ranked>(given, terms, count);
    case RandomKind::drawn: return mask_groups<limits, RandomKind::drawn>(given, terms, count);
  }
}

void mask_terms(const MaskedTile& given, float* terms, std::size_t count) {
  if (!given.has_limits) return mask_terms_of<Limits::none>(given, terms, count);
  if (given.top.cut == 0 && given.but.key == magnitude_bits) return mask_terms_of<Limits::top>(given, terms, count);
  mask_terms_of<Limits::both>(given, terms, count);
}

double sum_magnitudes(const float* terms, std::size_t count) {
  Doubles even = {}, odd = {};
  typedef std::uint64_t Bits __attribute__((vector_size(native_bytes)));
  const auto widened_magnitudes = [](const float* values) {
    Doubles wide = widened(values);
#pragma GCC unroll 4
    for (auto& part : wide.part) part = (Doubles::Native)((Bits)part & 0x7fffffffffffffffu);
    return wide;
  };
  for (std::size_t i = 0; i < count; i += 16) {
    even += widened_magnitudes(terms + i);
    odd += widened_magnitudes(terms + i + 8);
  }
  return sum_of(even + odd);
}

/// Who takes part in an element, and in what it is divided by.
enum class Election { none, signs, signs_and_shares };

/// One native vector of elements, at `i`.
template <Election election>
inline NativeFloats elected_sum(const MaskedSums& given, std::size_t i) {
  constexpr std::size_t ahead = 8;  // parts kept in registers between the vote and the sum; more are loaded again
  NativeFloats parts[ahead], total = {}, divisor = {}, elected = {};
  for (std::size_t k = 0; k < given.count_of_terms; ++k) {
    const NativeFloats part = load_native(given.terms + k * given.stride + i);
    if (election == Election::none) total += given.factors[k] * part;
    if (election != Election::none) elected += given.votes[k] * part;
    if (k < ahead) parts[k] = part;
  }
  if (election == Election::none) return given.scale * total;
  const Keys turned = elected >= 0.0f ? Keys{} : Keys{} + static_cast<std::int32_t>(0x80000000);
  for (std::size_t k = 0; k < given.count_of_terms; ++k) {
    const NativeFloats part = k < ahead ? parts[k] : load_native(given.terms + k * given.stride + i);
    const auto agrees = (NativeFloats)((Keys)(given.votes[k] * part) ^ turned) > 0.0f;
    total = agrees ? total + given.factors[k] * part : total;
    if (election == Election::signs_and_shares) divisor = agrees ? divisor + given.shares[k] : divisor;
  }
  if (election == Election::signs_and_shares) total /= divisor == 0.0f ? 1.0f + NativeFloats{} : divisor;
  return given.scale * total;
}

template <DType dtype, Election election>
void sum_masked_terms(const MaskedSums& given, void* out) {
  auto* const stored = static_cast<typename Element<dtype>::Storage*>(out);
  for (std::size_t i = 0; i < given.count; i += lanes) {
    Floats sums;
#pragma GCC unroll 4
    for (std::size_t part = 0; part < Floats::parts; ++part) {
      sums.part[part] = elected_sum<election>(given, i + part * Floats::width);
      if (given.base != nullptr) sums.part[part] = load_native(given.base + i + part * Floats::width) + sums.part[part];
    }
    if (i + lanes <= given.count) {
      Conversion<dtype>::store(sums, stored + i);
    } else {
      typename Element<dtype>::Storage last[lanes];
      Conversion<dtype>::store(sums, last);
      __builtin_memcpy(stored + i, last, (given.count - i) * sizeof last[0]);
    }
  }
}

template <DType dtype>
void write_masked(const MaskedSums& given, void* out) {
  if (given.votes == nullptr) return sum_masked_terms<dtype, Election::none>(given, out);
  if (given.shares == nullptr) return sum_masked_terms<dtype, Election::signs>(given, out);
  sum_masked_terms<dtype, Election::signs_and_shares>(given, out);
}

}  // namespace
}  // namespace minerua::isa
