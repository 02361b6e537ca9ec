/// @file table.hpp
/// Fills the table of loops of one instruction set. The including file defines MINERUA_ISA_NAME first.
#pragma once

#include "isa/combine_loops.hpp"
#include "isa/key_loops.hpp"
#include "isa/loops.hpp"
#include "isa/mask_loops.hpp"
#include "isa/matrix_product.hpp"
#include "isa/merge_loops.hpp"
#include "isa/pass_loops.hpp"
#include "isa/philox.hpp"
#include "isa/symmetric_eigen.hpp"
#include "isa/terms.hpp"

/// One entry per element type.
#define MINERUA_OF_DTYPES(loop) {loop<DType::float32>, loop<DType::float16>, loop<DType::bfloat16>}

#define MINERUA_TEXT_OF(name) #name
#define MINERUA_TEXT(name) MINERUA_TEXT_OF(name)

namespace minerua::isa {

const Loops MINERUA_ISA_NAME = {
    MINERUA_TEXT(MINERUA_ISA_NAME),
    MINERUA_OF_DTYPES(read_terms),
    MINERUA_OF_DTYPES(read_terms_counted),
    MINERUA_OF_DTYPES(read_values),
    MINERUA_OF_DTYPES(combine_stored),
    MINERUA_OF_DTYPES(count_not_finite),
    add_products,
    add_inner_products,
    MINERUA_OF_DTYPES(add_stored_products),
    copy_past_caches,
    MINERUA_OF_DTYPES(write_children),
    MINERUA_OF_DTYPES(sort_out_keys),
    MINERUA_OF_DTYPES(count_equal_keys),
    random_words,
    draw_bits,
    mask_terms,
    MINERUA_OF_DTYPES(sum_magnitudes),
    MINERUA_OF_DTYPES(write_masked),
    MINERUA_OF_DTYPES(write_kept),
    {multiply<float>, eigen<float>},
    {multiply<double>, eigen<double>},
};

}  // namespace minerua::isa
