// Launches the passes over many tensors.
#include "cuda/launch.hpp"

#include "cuda/combine_kernel.hpp"
#include "cuda/masked_kernel.hpp"
#include "cuda/select_kernel.hpp"

namespace minerua::cuda {
namespace {

constexpr int sum_shared_bytes = sums_shared_bytes(1, pass_threads);

template <class... Pointers>
void expect_pass(const char* name, const minerua_pass* pass, Pointers... pointers) {
  MINERUA_CUDA_EXPECTS(pass != nullptr && (... && (pointers != nullptr)), name << ": a pointer is null");
  MINERUA_CUDA_EXPECTS(pass->piece_count >= 0 && pass->most_sources >= 1,
                       name << ": " << pass->piece_count << " pieces of up to " << pass->most_sources << " sources");
  MINERUA_CUDA_EXPECTS(pass->sources != nullptr && pass->tensors != nullptr && pass->pieces != nullptr,
                       name << ": a table is null");
}

}  // namespace
}  // namespace minerua::cuda

using namespace minerua::cuda;

extern "C" int minerua_cuda_combine(const minerua_pass* pass, const float* coefficients, int64_t* counts, void* stream) {
  return guarded([=] {
    expect_pass("combine", pass, coefficients, counts);
    launch_kernel(combine_kernel, pass->piece_count, pass_threads, 0, stream, {*pass, coefficients, counts});
  });
}

extern "C" int minerua_cuda_gram(const minerua_pass* pass, double* partial, void* stream) {
  return guarded([=] {
    expect_pass("gram", pass, partial);
    launch_kernel(gram_kernel, pass->piece_count * gram_squares(pass->most_sources), pass_threads, gram_shared_bytes,
                  stream, {*pass, partial});
  });
}

extern "C" int minerua_cuda_sum_pieces(const minerua_sum* sums, int64_t sum_count, const double* partial, double* out,
                                       void* stream) {
  return guarded([=] {
    MINERUA_CUDA_EXPECTS(sums != nullptr && partial != nullptr && out != nullptr, "sum_pieces: a pointer is null");
    launch_kernel(sum_kernel, sum_count, pass_threads, sum_shared_bytes, stream, {sums, partial, out});
  });
}

extern "C" int minerua_cuda_histogram(const minerua_pass* pass, const minerua_selection* selections, int64_t* counts,
                                      void* stream) {
  return guarded([=] {
    expect_pass("histogram", pass, counts);
    launch_kernel(selections == nullptr ? histogram_kernel<false> : histogram_kernel<true>,
                  pass->piece_count * pass->most_sources, histogram_threads, histogram_shared_bytes, stream,
                  {*pass, selections, counts});
  });
}

extern "C" int minerua_cuda_narrow(minerua_selection* selections, int64_t selection_count, const int64_t* counts,
                                   int is_lower, void* stream) {
  return guarded([=] {
    MINERUA_CUDA_EXPECTS(selections != nullptr && counts != nullptr, "narrow: a pointer is null");
    launch_kernel(is_lower ? narrow_kernel<true> : narrow_kernel<false>, selection_count, pass_threads,
                  locate_shared_bytes, stream, {selections, counts});
  });
}

extern "C" int minerua_cuda_count_equal(const minerua_pass* pass, const minerua_place* places, int64_t* counts,
                                        void* stream) {
  return guarded([=] {
    expect_pass("count_equal", pass, places, counts);
    launch_kernel(count_equal_kernel, pass->piece_count, pass_threads, sum_shared_bytes, stream,
                  {*pass, places, counts});
  });
}

extern "C" int minerua_cuda_cut_ties(const minerua_pass* pass, const minerua_place* places, int64_t place_count,
                                     const int64_t* counts, minerua_mask* masks, void* stream) {
  return guarded([=] {
    expect_pass("cut_ties", pass, places, counts, masks);
    launch_kernel(cut_ties_kernel, place_count, pass_threads, locate_shared_bytes, stream,
                  {*pass, places, counts, masks});
  });
}

extern "C" int minerua_cuda_masked_sums(const minerua_pass* pass, const minerua_mask* masks, double* partial,
                                        void* stream) {
  return guarded([=] {
    expect_pass("masked_sums", pass, masks, partial);
    launch_kernel(masked_sums_kernel, pass->piece_count, masked_threads, masked_sums_shared_bytes, stream,
                  {*pass, masks, partial});
  });
}

extern "C" int minerua_cuda_merge_masked(const minerua_pass* pass, const minerua_mask* masks, const float* numbers,
                                         int64_t* counts, void* stream) {
  return guarded([=] {
    expect_pass("merge_masked", pass, masks, numbers, counts);
    launch_kernel(merge_masked_kernel, pass->piece_count, masked_threads, merge_masked_shared_bytes(pass->most_sources),
                  stream, {*pass, masks, numbers, counts});
  });
}
