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

/// Zeros where an element's bit is not set.
inline __attribute__((always_inline)) NativeFloats chosen_of(const NativeFloats& values, std::uint32_t bits) {
#if defined(__AVX512F__)
  return (NativeFloats)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)values);
#else
  Words lane = {};
  for (std::size_t i = 0; i < Floats::width; ++i) lane[i] = static_cast<std::uint32_t>(i);
  return (((Words{} + bits) >> lane) & 1u) != 0u ? values : NativeFloats{};
#endif
}

/// What must be looked at besides random words: nothing, one key, or two keys and where their budgets end.
enum class Limits { none, top, both };

template <Limits limits, RandomKind kind>
void mask_groups(const MaskedTile given, float* terms, std::size_t count) {  // a copy: the terms cannot alias it
  Keys index;
  for (std::size_t lane = 0; lane < Floats::width; ++lane) index[lane] = static_cast<std::int32_t>(lane);
  for (std::size_t i = 0; i < count; i += Floats::width, index += static_cast<std::int32_t>(Floats::width)) {
    // One selection after another: a condition of several would leave the mask registers.
    NativeFloats values = load_native(terms + i);
    const Keys keys = keys_of(values);
    if (given.inverse)
      values /= kind == RandomKind::ranked ? load_native(given.probabilities + i) : given.probability + NativeFloats{};
    if (limits == Limits::top) values = keys > given.top.key ? values : NativeFloats{};
    if (limits == Limits::both) {
      values = keys > given.top.key + (index < given.top.cut) ? values : NativeFloats{};
      values = keys > given.but.key + (index < given.but.cut) ? NativeFloats{} : values;
    }
    if (kind == RandomKind::drawn) values = chosen_of(values, bits_from(given.bits, given.first_bit + i));
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

inline Floats magnitudes_of(Floats group) {
#pragma GCC unroll 4
  for (auto& part : group.part) part = (NativeFloats)keys_of(part);
  return group;
}

/// Adds those of eight numbers whose bits are set; numbers and sums are not below zero.
inline __attribute__((always_inline)) void add_chosen(Doubles& sums, const Doubles& numbers, std::uint32_t bits) {
#if defined(__AVX512F__)
  const auto sum = (__m512d)sums.part[0];
  sums.part[0] = (Doubles::Native)_mm512_mask_add_pd(sum, static_cast<__mmask8>(bits), sum, (__m512d)numbers.part[0]);
#else
  typedef std::uint64_t Bits __attribute__((vector_size(native_bytes)));
  Bits lane = {};
  for (std::size_t i = 0; i < Doubles::width; ++i) lane[i] = i;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < Doubles::parts; ++i)
    sums.part[i] +=
        (((Bits{} + (bits >> i * Doubles::width)) >> lane) & 1u) != 0u ? numbers.part[i] : Doubles::Native{};
#endif
}

/// A number whose bits from the lowest on are those of sixteen elements from `first` on.
inline std::uint32_t sixteen_bits_from(const std::uint64_t* bits, std::size_t first) {
  std::uint32_t together = 0;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < lanes; i += Floats::width)
    together |= (bits_from(bits, first + i) & ((std::uint64_t{1} << Floats::width) - 1)) << i;
  return together;
}

template <DType dtype>
MagnitudeSums sum_magnitudes(const Terms& given, const std::uint64_t* bits, std::size_t first_bit) {
  Doubles all[2] = {}, kept[2] = {}, lower, upper;
  over_groups(TermReader<dtype>(given), [&](std::size_t i, const Floats& group) {
    widen(magnitudes_of(group), lower, upper);
    all[0] += lower, all[1] += upper;
    if (bits == nullptr) return;
    const std::uint32_t chosen = sixteen_bits_from(bits, first_bit + i);
    add_chosen(kept[0], lower, chosen);
    add_chosen(kept[1], upper, chosen >> 8);
  });
  return {sum_of(all[0] + all[1]), sum_of(kept[0] + kept[1])};
}

/// Who takes part in an element, and in what it is divided by.
enum class Election { none, signs, signs_and_shares };

/// One native vector of sums of what part(k) gives.
template <Election election, class Part>
inline __attribute__((always_inline)) NativeFloats elected_sum(const MergeRule& rule, const Part& part) {
  NativeFloats total = {}, divisor = {}, elected = {};
  for (std::size_t k = 0; k < rule.count_of_terms; ++k) {
    if (election == Election::none) total += rule.factors[k] * part(k);
    if (election != Election::none) elected += rule.votes[k] * part(k);
  }
  if (election == Election::none) return rule.scale * total;
  const Keys turned = elected >= 0.0f ? Keys{} : Keys{} + static_cast<std::int32_t>(0x80000000);
  for (std::size_t k = 0; k < rule.count_of_terms; ++k) {
    const auto agrees = (NativeFloats)((Keys)(rule.votes[k] * part(k)) ^ turned) > 0.0f;
    total = agrees ? total + rule.factors[k] * part(k) : total;
    if (election == Election::signs_and_shares) divisor = agrees ? divisor + rule.shares[k] : divisor;
  }
  if (election == Election::signs_and_shares) total /= divisor == 0.0f ? 1.0f + NativeFloats{} : divisor;
  return rule.scale * total;
}

/// Stores the group of elements from `i` on, of `count`.
template <DType dtype>
inline void store_group(const Floats& group, std::size_t i, std::size_t count, typename Element<dtype>::Storage* stored) {
  if (i + lanes <= count) return Conversion<dtype>::store(group, stored + i);
  typename Element<dtype>::Storage last[lanes];
  Conversion<dtype>::store(group, last);
  __builtin_memcpy(stored + i, last, (count - i) * sizeof last[0]);
}

template <DType dtype, Election election>
void sum_masked_terms(const MaskedSums& given, void* out) {
  auto* const stored = static_cast<typename Element<dtype>::Storage*>(out);
  for (std::size_t i = 0; i < given.count; i += lanes) {
    Floats sums;
#pragma GCC unroll 4
    for (std::size_t part = 0; part < Floats::parts; ++part) {
      const float* const terms = given.terms + i + part * Floats::width;
      sums.part[part] =
          elected_sum<election>(given.rule, [&](std::size_t k) { return load_native(terms + k * given.stride); });
      if (given.base != nullptr) sums.part[part] = load_native(given.base + i + part * Floats::width) + sums.part[part];
    }
    store_group<dtype>(sums, i, given.count, stored);
  }
}

template <DType dtype>
void write_masked(const MaskedSums& given, void* out) {
  if (given.rule.votes == nullptr) return sum_masked_terms<dtype, Election::none>(given, out);
  if (given.rule.shares == nullptr) return sum_masked_terms<dtype, Election::signs>(given, out);
  sum_masked_terms<dtype, Election::signs_and_shares>(given, out);
}

/// Which terms of one source are kept.
struct Kept {
  std::int32_t key;
  const std::uint64_t* bits;

  inline __attribute__((always_inline)) NativeFloats of(const NativeFloats& terms, std::size_t bit) const {
    if (bits != nullptr) return chosen_of(terms, bits_from(bits, bit));
    return keys_of(terms) > key ? terms : NativeFloats{};
  }
};

template <DType dtype, Election election, std::size_t count_of_terms>
bool sum_kept_terms(const KeptSums& given, typename Element<dtype>::Storage* stored) {
  using Reader = TermReader<dtype>;
  const std::size_t terms_count = count_of_terms == 0 ? given.rule.count_of_terms : count_of_terms;
  constexpr std::size_t room = count_of_terms == 0 ? most_kept : count_of_terms;
  const Reader base(given.base, nullptr, given.count);
  LargestBits<DType::float32> seen;
  const auto write = [&](std::size_t i, const auto& group_of) {
    Floats terms[room], sums;
    for (std::size_t k = 0; k < terms_count; ++k) {
      terms[k] = group_of(Reader(given.sources[k], given.base, given.count));
#pragma GCC unroll 4
      for (std::size_t p = 0; p < Floats::parts; ++p) {
        seen.see((LargestBits<DType::float32>::Lanes)terms[k].part[p]);
        const Kept kept{given.keys == nullptr ? 0 : given.keys[k], given.bits == nullptr ? nullptr : given.bits[k]};
        terms[k].part[p] = kept.of(terms[k].part[p], given.first_bit + i + p * Floats::width);
      }
    }
    MergeRule rule = given.rule;
    rule.count_of_terms = terms_count;
#pragma GCC unroll 4
    for (std::size_t p = 0; p < Floats::parts; ++p)
      sums.part[p] = elected_sum<election>(rule, [&](std::size_t k) { return terms[k].part[p]; });
    if (given.base != nullptr) sums = group_of(base) + sums;
    store_group<dtype>(sums, i, given.count, stored);
  };
  std::size_t i = 0;
  for (; i + lanes <= given.count; i += lanes) write(i, [i](const Reader& reader) { return reader.group(i); });
  if (i < given.count) write(i, [i](const Reader& reader) { return reader.last_group(i); });
  return seen.is_finite() && count_not_finite<dtype>(stored, given.count) == 0;
}

template <DType dtype, Election election>
bool sum_kept(const KeptSums& given, void* out) {
  auto* const stored = static_cast<typename Element<dtype>::Storage*>(out);
  // As many as can stay in registers are known when this is compiled.
  if (given.rule.count_of_terms == 2) return sum_kept_terms<dtype, election, 2>(given, stored);
  if (given.rule.count_of_terms == 3) return sum_kept_terms<dtype, election, 3>(given, stored);
  return sum_kept_terms<dtype, election, 0>(given, stored);
}

template <DType dtype>
bool write_kept(const KeptSums& given, void* out) {
  if (given.rule.votes == nullptr) return sum_kept<dtype, Election::none>(given, out);
  if (given.rule.shares == nullptr) return sum_kept<dtype, Election::signs>(given, out);
  return sum_kept<dtype, Election::signs_and_shares>(given, out);
}

}  // namespace
}  // namespace minerua::isa
