/// The loops compiled for avx2: see loops.hpp. Nothing with external linkage may be defined here but `avx2`.
#define MINERUA_ISA_NAME avx2
#include "isa/table.hpp"
