/// @file ranks.hpp
/// Probabilities by rank within a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace minerua {

/// Replaces the numbers of a row by (keep − spread) + rank ÷ (count − 1) · (2 · spread), in float, with rank 0 for the
/// smallest magnitude; of equal magnitudes the first by index has the highest rank. `order` and `spare` are room to work in.
/// @param count At least 2, below 2^31.
void replace_by_probabilities(float* row, std::size_t count, float keep, float spread, std::vector<std::uint64_t>& order,
                              std::vector<std::uint64_t>& spare);

}  // namespace minerua
