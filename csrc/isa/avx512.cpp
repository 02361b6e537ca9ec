/// The loops compiled for avx512: see loops.hpp. Nothing with external linkage may be defined here but `avx512`.
#define MINERUA_ISA_NAME avx512
#include "isa/table.hpp"
