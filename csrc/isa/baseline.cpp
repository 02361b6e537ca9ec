/// The loops compiled for baseline: see loops.hpp. Nothing with external linkage may be defined here but `baseline`.
#define MINERUA_ISA_NAME baseline
#include "isa/table.hpp"
