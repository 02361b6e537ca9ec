// libminerua_cuda.so, but for merge and svd_mutation, made to run on the CPU: for tests of the Python half without a device.
#include "cuda/capi.cpp"
#include "cuda/passes.cu"

/// How many checks of the emulation have failed so far; they are reported on the standard error stream.
extern "C" MINERUA_API int minerua_emulation_failures(void) { return check::failures; }

/// Bytes of a row of every table, and of minerua_pass.
extern "C" MINERUA_API void minerua_emulation_layout(int64_t* sizes) {
  for (const std::size_t size : {sizeof(minerua_source), sizeof(minerua_tensor), sizeof(minerua_piece),
                                 sizeof(minerua_selection), sizeof(minerua_place), sizeof(minerua_mask),
                                 sizeof(minerua_sum), sizeof(minerua_pass)})
    *sizes++ = static_cast<int64_t>(size);
}
