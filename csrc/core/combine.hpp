/// @file combine.hpp
/// Weighted sums of tensors, and their inner products: one pass over the sources, whatever their size.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/source.hpp"
#include "core/target.hpp"

namespace minerua {

/// Writes Σ_k c_k x_k, or with a base b + Σ_k c_k (x_k − b): in float, summed in the order of k from the base on, rounded
/// once. The bits do not depend on the number of threads or on the instruction set.
///
/// @param coefficients `rows` times K floats: one set for every row of size / rows elements.
/// @param counts K + 2 numbers, filled with how many numbers of each source, of the base, and of the result are not finite.
/// @throws InvalidArgument before anything is written; std::system_error if a file cannot be written.
void combine(const Sources& sources, const Source* base, const float* coefficients, std::size_t rows,
             const Target& target, std::int64_t* counts);

/// Fills `products` (rows × K × K) with all inner products of x_k, or with a base of x_k − b (in float), in double
/// precision, for every row of size / rows elements. Sums have one order, whatever the threads and the instruction set.
/// @throws InvalidArgument.
void gram(const Sources& sources, const Source* base, std::size_t rows, double* products);

}  // namespace minerua
