// csr_offsets: where each row's codes begin. One block: a million rows are 4 MB, read in microseconds.
#include "cuda/kernels.h"
#include "cuda/scan.h"

namespace saekernels {
namespace gpu {
namespace {

__global__ void __launch_bounds__(kScanThreads) offsets_kernel(const int32_t* counts, int64_t rows, int64_t* offsets) {
  __shared__ int64_t shared[kScanThreads];
  const int64_t all = exclusive_scan(counts, rows, offsets, shared);
  if (threadIdx.x == 0) offsets[rows] = all;
}

}  // namespace

cudaError_t csr_offsets(const int32_t* counts, int64_t rows, int64_t* offsets, cudaStream_t stream) {
  return launch(offsets_kernel, dim3(1), kScanThreads, stream, counts, rows, offsets);
}

}  // namespace gpu
}  // namespace saekernels
