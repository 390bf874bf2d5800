// The launchers that bindings call. Each takes device addresses and a stream, starts kernels and returns the error of
// doing so; none allocates or waits, so all may be captured into a CUDA graph.
#pragma once

#include "common/types.h"
#include "cuda/device.h"

namespace saekernels {
namespace gpu {

// Keys that one block sorts, and so the largest k.
constexpr int kMostKept = 2048;

// The k best of each row's candidates, best first. candidates: [rows, capacity] signed keys (common/keys.h) of which a
// row has the first min(counts[row], capacity); values [rows, k] of `dtype`, at least 0 with `relu`; indices [rows, k].
// A row with fewer than k gets value 0 and indices from 0 on for those that are missing.
cudaError_t select(const int64_t* candidates, const int32_t* counts, int64_t rows, int64_t capacity, int k, bool relu,
                   DType dtype, void* values, int32_t* indices, cudaStream_t stream);

// The k best scores of each row, best first: the elements themselves, [rows, k], and their indices. scratch:
// topk_scratch keys.
cudaError_t topk(const Matrix& scores, int k, int multiprocessors, int64_t* scratch, void* values, int32_t* indices,
                 cudaStream_t stream);
int64_t topk_scratch(int64_t rows, int64_t columns, int k, int multiprocessors);

// Entries e by indices[e], ascending e within one: order [count]; starts [latents + 1]: where each latent's begin.
// scratch: group_scratch bytes, of which the alignment is 16.
cudaError_t group_by_latent(const int32_t* indices, int64_t count, int64_t latents, void* scratch, int32_t* order,
                            int64_t* starts, cudaStream_t stream);
int64_t group_scratch(int64_t count);

}  // namespace gpu
}  // namespace saekernels
