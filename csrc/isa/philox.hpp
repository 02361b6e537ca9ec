/// @file philox.hpp
/// Random words that depend on nothing but a key and a place, sixteen places at a time. Included only by the files of this
/// folder, inside their instruction set.
///
/// Source: Salmon 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3 (Philox4x32, ten rounds).
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/conversions.hpp"
#include "isa/loops.hpp"
#include "isa/vectors.hpp"

namespace minerua::isa {
namespace {

/// 64-bit lanes of which the lower halves count: the upper ones hold what multiplications left there.
typedef std::uint64_t Longs __attribute__((vector_size(native_bytes)));

constexpr std::uint64_t first_multiplier = 0xD2511F53u, second_multiplier = 0xCD9E8D57u;
constexpr std::uint32_t first_weyl = 0x9E3779B9u, second_weyl = 0xBB67AE85u;
constexpr int philox_rounds = 10;

/// Products of the lower halves.
inline Longs multiply_low(const Longs& lanes_of, const Longs& factor) {
#if defined(__AVX512F__)
  return (Longs)_mm512_maskz_mul_epu32(0xff, (__m512i)lanes_of, (__m512i)factor);
#elif defined(__AVX2__)
  return (Longs)_mm256_mul_epu32((__m256i)lanes_of, (__m256i)factor);
#elif defined(__SSE2__)
  return (Longs)_mm_mul_epu32((__m128i)lanes_of, (__m128i)factor);
#else
  return (lanes_of & 0xffffffffu) * factor;
#endif
}

/// Four words of as many counters as there are lanes.
struct Counters {
  Longs word[4];

  inline __attribute__((always_inline)) void scramble(const std::uint64_t (&keys)[philox_rounds][2]) {
#pragma GCC unroll 10
    for (int round = 0; round < philox_rounds; ++round) {
      const Longs first = multiply_low(word[0], first_multiplier + Longs{});
      const Longs second = multiply_low(word[2], second_multiplier + Longs{});
      word[0] = (second >> 32) ^ word[1] ^ keys[round][0];
      word[2] = (first >> 32) ^ word[3] ^ keys[round][1];
      word[1] = second, word[3] = first;
    }
  }
};

/// The lower halves of two vectors by turns: even[0], odd[0], even[1], …
inline Words interleaved(const Longs& even, const Longs& odd) {
#if defined(__AVX512F__)
  return (Words)_mm512_mask_blend_epi32(0xaaaa, (__m512i)even, (__m512i)(odd << 32));
#else
  return (Words)((even & 0xffffffffu) | (odd << 32));
#endif
}

/// One block: counter c and its fifteen neighbours give word w of counter c + i for element 16 w + i.
inline void scramble_block(std::uint64_t counter, const RandomStream& stream,
                           const std::uint64_t (&keys)[philox_rounds][2], std::uint32_t* words) {
  constexpr std::size_t width = native_bytes / sizeof(std::uint64_t);
  Longs steps;
  for (std::size_t lane = 0; lane < width; ++lane) steps[lane] = 2 * lane;
#pragma GCC unroll 4
  for (std::size_t part = 0; part < Floats::parts; ++part) {
    const Longs lower = steps + ((counter & 0xffffffffu) + 2 * width * part);  // sixteen neighbours never carry
    const Longs upper = Longs{} + (counter >> 32), tensor = Longs{} + stream.tensor, model = Longs{} + stream.model;
    Counters even{{lower, upper, tensor, model}}, odd{{lower + 1, upper, tensor, model}};
    even.scramble(keys);
    odd.scramble(keys);
#pragma GCC unroll 4
    for (std::size_t w = 0; w < 4; ++w) {
      const Words pair = interleaved(even.word[w], odd.word[w]);
      __builtin_memcpy(words + 16 * w + part * Floats::width, &pair, sizeof pair);
    }
  }
}

void random_words(const RandomStream& stream, std::uint64_t first_block, std::size_t blocks, std::uint32_t* words) {
  std::uint64_t keys[philox_rounds][2];
  auto low = static_cast<std::uint32_t>(stream.seed), high = static_cast<std::uint32_t>(stream.seed >> 32);
  for (auto& key : keys) {
    key[0] = low, key[1] = high;
    low += first_weyl, high += second_weyl;
  }
  for (std::size_t block = 0; block < blocks; ++block)
    scramble_block((first_block + block) * 16, stream, keys, words + 64 * block);
}

}  // namespace
}  // namespace minerua::isa
