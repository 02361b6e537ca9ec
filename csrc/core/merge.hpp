/// @file merge.hpp
/// Children of several experts, all in one pass over the experts.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "core/tensor_view.hpp"

namespace minerua {

/// Writes child_p = base + Σ_k c[p,k] (x_k - base), or Σ_k c[p,k] x_k without a base, for all children p.
///
/// Everything is computed in float: x_k - base rounded once, products added in the order of k, starting from base (or from
/// the first product), one rounding to the output type at the end. Overflow and values that are not finite follow IEEE 754.
/// The bits do not depend on the number of threads or on the instruction set. K + 1 streams are read and P written.
///
/// @param experts K >= 1 views of one size and one type.
/// @param base The same size, any type; or nothing.
/// @param coefficients P rows of K floats, contiguous; finite.
/// @param children P >= 1.
/// @param out P * size elements, child after child; must not overlap an input.
/// @throws InvalidArgument for anything else, before anything is written; std::bad_alloc.
void merge(const std::vector<ConstTensorView>& experts, const std::optional<ConstTensorView>& base,
           const float* coefficients, std::size_t children, const TensorView& out);

}  // namespace minerua
