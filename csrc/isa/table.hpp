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
    {read_terms<DType::float32>, read_terms<DType::float16>, read_terms<DType::bfloat16>},
    {write_children<DType::float32>, write_children<DType::float16>, write_children<DType::bfloat16>},
    multiply,
    eigen,
};

}  // namespace minerua::isa
