/// @file masked.hpp
/// Merges of task vectors of which only a part is kept, in one pass over the sources.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/masks.hpp"
#include "core/source.hpp"
#include "core/target.hpp"

namespace minerua {

/// What is done with the kept parts d_k: b + scale · Σ_k f_k d_k ÷ divisor.
///
/// With votes v the elected sign of an element is + if Σ_k v_k d_k >= 0 and − otherwise, and only sources whose v_k d_k has it
/// take part. With shares s, which need votes, the divisor is Σ s_k over those, 1 if that is 0. Null where there are none.
struct MaskedMerge {
  const float* factors = nullptr;
  const float* votes = nullptr;
  const float* shares = nullptr;
  float scale = 1.0f;
};

/// Writes the merge of δ_k = x_k − b (x_k without a base): d_k is δ_k where its mask keeps it (divided by its probability
/// where the mask says so), else 0. All in float, in the order of k, rounded once. The bits do not depend on the number of
/// threads or on the instruction set.
///
/// @param counts K + 2 numbers, filled with how many numbers of each source, of the base, and of the result are not finite.
/// @throws InvalidArgument before anything is written; std::system_error if a file cannot be written.
void merge_masked(const Sources& sources, const Source* base, const std::vector<Mask>& masks, const MaskedMerge& how,
                  const Target& target, std::int64_t* counts);

/// Fills `sums`, K × 2, with Σ|δ_k| and Σ|kept δ_k| in double precision, in one order; `inverse` is not applied.
/// @throws InvalidArgument.
void masked_sums(const Sources& sources, const Source* base, const std::vector<Mask>& masks, double* sums);

}  // namespace minerua
