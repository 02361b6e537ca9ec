// libminerua_cuda.so, but for merge and svd_mutation, made to run on the CPU: for tests of the Python half without a device.
#include "cuda/capi.cpp"
#include "cuda/passes.cu"

/// How many checks of the emulation have failed so far; they are reported on the standard error stream.
extern "C" MINERUA_API int minerua_emulation_failures(void) { return check::failures; }
