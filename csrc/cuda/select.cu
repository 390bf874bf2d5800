// select: the k best of each row's candidates. One block per row; a row's candidates are a few hundred.
#include "cuda/best.h"

namespace saekernels {
namespace gpu {
namespace {

struct CandidateKeys {
  const int64_t* row;
  __device__ uint64_t operator()(int64_t i) const { return unsigned_key(row[i]); }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    select_kernel(const int64_t* candidates, const int32_t* counts, int64_t capacity, int k, bool relu, T* values,
                  int32_t* indices) {
  __shared__ BestShared shared;
  const int64_t row = blockIdx.x;
  const int64_t n = counts[row] < capacity ? counts[row] : capacity;
  best_of(CandidateKeys{candidates + row * capacity}, n, k, &shared);
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const bool there = i < n;
    const uint64_t key = shared.kept[i];
    const float value = there ? key_value(key) : 0.0f;
    from_float(relu && value < 0 ? 0.0f : value, values + row * k + i);
    indices[row * k + i] = there ? key_index(key) : i;
  }
}

template <class T>
cudaError_t select_typed(const int64_t* candidates, const int32_t* counts, int64_t rows, int64_t capacity, int k,
                         bool relu, void* values, int32_t* indices, cudaStream_t stream) {
  return launch(select_kernel<T>, dim3(static_cast<unsigned>(rows)), kThreads, stream, candidates, counts, capacity, k,
                relu, static_cast<T*>(values), indices);
}

}  // namespace

cudaError_t select(const int64_t* candidates, const int32_t* counts, int64_t rows, int64_t capacity, int k, bool relu,
                   DType dtype, void* values, int32_t* indices, cudaStream_t stream) {
  if (k < 1 || k > kMostKept || rows >= int64_t{1} << 31) return cudaErrorInvalidValue;
  const auto typed = dtype == DType::kFloat32    ? select_typed<float>
                     : dtype == DType::kBfloat16 ? select_typed<Bf16>
                                                 : select_typed<F16>;
  return typed(candidates, counts, rows, capacity, k, relu, values, indices, stream);
}

}  // namespace gpu
}  // namespace saekernels
