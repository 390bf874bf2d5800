// topk: the k best of dense scores. One block per row; where rows are too few for the GPU, several share a row, each
// leaves its own best as keys, and a second kernel takes the best of those. Keys are unique, so how a row is shared
// decides nothing.
#include "cuda/best.h"

namespace saekernels {
namespace gpu {
namespace {

// A share of a row is no shorter than this: what a block reads while it waits for its first histogram.
constexpr int64_t kLeastPart = 8192;

template <class T>
struct ScoreKeys {
  const T* row;
  int64_t stride;
  int64_t first;
  __device__ uint64_t operator()(int64_t i) const {
    return make_key(to_float(row[(first + i) * stride]), static_cast<int32_t>(first + i), false);
  }
};

struct PartKeys {
  const int64_t* keys;
  __device__ uint64_t operator()(int64_t i) const { return unsigned_key(keys[i]); }
};

template <class T>
__device__ void write_best(const BestShared& shared, const T* row, int64_t stride, int k, T* values, int32_t* indices) {
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const int32_t index = key_index(shared.kept[i]);
    values[i] = row[index * stride];  // the element itself, which a key cannot tell from its equals
    indices[i] = index;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) topk_kernel(const T* scores, int64_t columns, int64_t row_stride,
                                                        int64_t col_stride, int k, T* values, int32_t* indices) {
  __shared__ BestShared shared;
  const int64_t row = blockIdx.x;
  const T* source = scores + row * row_stride;
  best_of(ScoreKeys<T>{source, col_stride, 0}, columns, k, &shared);
  write_best(shared, source, col_stride, k, values + row * k, indices + row * k);
}

// grid: (rows, parts). part_keys: [rows, parts, k].
template <class T>
__global__ void __launch_bounds__(kThreads)
    parts_kernel(const T* scores, int64_t columns, int64_t row_stride, int64_t col_stride, int k, int64_t* part_keys) {
  __shared__ BestShared shared;
  const int64_t row = blockIdx.x;
  const int64_t each = (columns + gridDim.y - 1) / gridDim.y;
  const int64_t first = blockIdx.y * each;
  const int64_t n = first >= columns ? 0 : (columns - first < each ? columns - first : each);
  best_of(ScoreKeys<T>{scores + row * row_stride, col_stride, first}, n, k, &shared);
  int64_t* out = part_keys + (row * gridDim.y + blockIdx.y) * k;
  for (int i = threadIdx.x; i < k; i += kThreads) out[i] = signed_key(shared.kept[i]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const T* scores, int64_t row_stride, int64_t col_stride, int64_t part_count, int k,
                 const int64_t* part_keys, T* values, int32_t* indices) {
  __shared__ BestShared shared;
  const int64_t row = blockIdx.x;
  best_of(PartKeys{part_keys + row * part_count * k}, part_count * k, k, &shared);
  write_best(shared, scores + row * row_stride, col_stride, k, values + row * k, indices + row * k);
}

int64_t parts_of(int64_t rows, int64_t columns, int k, int multiprocessors) {
  if (rows == 0 || rows >= multiprocessors) return 1;
  const int64_t least = kLeastPart > 4 * int64_t{k} ? kLeastPart : 4 * int64_t{k};
  const int64_t wanted = (2 * int64_t{multiprocessors} + rows - 1) / rows;
  const int64_t most = (columns + least - 1) / least;
  return wanted < most ? wanted : most;
}

template <class T>
cudaError_t topk_typed(const Matrix& m, int k, int64_t parts, int64_t* scratch, void* values, int32_t* indices,
                       cudaStream_t stream) {
  const T* scores = static_cast<const T*>(m.data);
  T* out = static_cast<T*>(values);
  const dim3 rows(static_cast<unsigned>(m.rows));
  if (parts == 1) {
    return launch(topk_kernel<T>, rows, kThreads, stream, scores, m.cols, m.row_stride, m.col_stride, k, out, indices);
  }
  const dim3 grid(static_cast<unsigned>(m.rows), static_cast<unsigned>(parts));
  SK_RETURN_IF_ERROR(
      launch(parts_kernel<T>, grid, kThreads, stream, scores, m.cols, m.row_stride, m.col_stride, k, scratch));
  return launch(merge_kernel<T>, rows, kThreads, stream, scores, m.row_stride, m.col_stride, parts, k,
                static_cast<const int64_t*>(scratch), out, indices);
}

}  // namespace

int64_t topk_scratch(int64_t rows, int64_t columns, int k, int multiprocessors) {
  const int64_t parts = parts_of(rows, columns, k, multiprocessors);
  return parts == 1 ? 0 : rows * parts * k;
}

cudaError_t topk(const Matrix& scores, int k, int multiprocessors, int64_t* scratch, void* values, int32_t* indices,
                 cudaStream_t stream) {
  if (k < 1 || k > kMostKept || k > scores.cols || scores.rows >= int64_t{1} << 31) return cudaErrorInvalidValue;
  const auto typed = scores.dtype == DType::kFloat32    ? topk_typed<float>
                     : scores.dtype == DType::kBfloat16 ? topk_typed<Bf16>
                                                        : topk_typed<F16>;
  const int64_t parts = parts_of(scores.rows, scores.cols, k, multiprocessors);
  return typed(scores, k, parts, scratch, values, indices, stream);
}

}  // namespace gpu
}  // namespace saekernels
