// Sparse decode: each output row is a weighted sum of the decoder rows of its entries, in their order, in fp32.
#include <algorithm>

#include "cpu/check.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

constexpr double kTermsPerThread = 1 << 18;

}  // namespace

void decode(const Entries& codes, const Matrix& weight, const Matrix& bias, int threads, const MutableRows& out) {
  check_offsets(codes);
  check_indices(codes.indices, codes.count, weight.rows);
  const Level& simd = level();
  const int64_t width = weight.cols;
  const int64_t work = (codes.count + codes.rows) * width;
  const int workers = workers_for(static_cast<double>(work), kTermsPerThread, threads);
  Buffer<float> fp32_bias(width);
  std::fill(fp32_bias.get(), fp32_bias.get() + width, 0.0f);
  if (bias.data != nullptr) simd.load_row(bias, 0, 0, width, fp32_bias.get());
  const Matrix values{codes.values, 1, codes.count, codes.count, 1, codes.dtype};
  const int64_t share = std::clamp<int64_t>(ceil_div(codes.rows, 8 * workers), 1, 64);
  parallel_for(ceil_div(codes.rows, share), workers, [&](int64_t task, int) {
    const int64_t first_row = task * share, end_row = std::min(codes.rows, first_row + share);
    const int64_t first = codes.offsets[first_row], count = codes.offsets[end_row] - first;
    Buffer<float> sum(width), weights(count);
    simd.load_row(values, 0, first, count, weights.get());
    for (int64_t row = first_row; row < end_row; ++row) {
      const int64_t begin = codes.offsets[row], n = codes.offsets[row + 1] - begin;
      simd.gather_sum(sum.get(), weights.get() + (begin - first), codes.indices + begin, n, first + count - (begin + n),
                      weight);
      if (bias.data != nullptr) {
        for (int64_t j = 0; j < width; ++j) sum[j] += fp32_bias[j];
      }
      simd.store_row(sum.get(), width, out.dtype, row_of(out, row));
    }
  });
}

}  // namespace saekernels
