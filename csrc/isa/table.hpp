/// @file table.hpp
/// Fills the table of loops of one instruction set. The including file defines MINERUA_ISA_NAME first.
#pragma once

#include "isa/loops.hpp"
#include "isa/matrix_product.hpp"
#include "isa/merge_loops.hpp"
#include "isa/symmetric_eigen.hpp"

#define MINERUA_TEXT_OF(name) #name
#define MINERUA_TEXT(name) MINERUA_TEXT_OF(name)

namespace minerua::isa {

const Loops MINERUA_ISA_NAME = {
    MINERUA_TEXT(MINERUA_ISA_NAME),
    {load_elements<DType::float32>, load_elements<DType::float16>, load_elements<DType::bfloat16>},
    {store_elements<DType::float32>, store_elements<DType::float16>, store_elements<DType::bfloat16>},
    subtract,
    combine,
    multiply,
    eigen,
};

}  // namespace minerua::isa
