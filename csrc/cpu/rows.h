// Rows of x as the kernels take them: fp32, less pre_bias, one after the other, zero-padded to a multiple of kDotLanes.
#pragma once

#include <algorithm>

#include "cpu/levels/level.h"
#include "cpu/memory.h"
#include "cpu/threads/parallel.h"

namespace saekernels {

class CentredRows {
 public:
  CentredRows(const Level& simd, int64_t capacity, int64_t depth)
      : simd_(simd), depth_(depth), padded_(round_up(depth, kDotLanes)), data_(capacity * padded_) {}

  // Rows [first, first + count) of x; pre_bias may be null.
  void load(const Matrix& x, const float* pre_bias, int64_t first, int64_t count, int threads) {
    load_each(x, pre_bias, [=](int64_t r) { return first + r; }, count, threads);
  }

  // Rows ids[0 .. count) of x.
  void pick(const Matrix& x, const float* pre_bias, const int64_t* ids, int64_t count, int threads) {
    load_each(x, pre_bias, [=](int64_t r) { return ids[r]; }, count, threads);
  }

  const float* row(int64_t r) const { return data_.get() + r * padded_; }
  int64_t padded() const { return padded_; }
  // All rows as a matrix: what gather_dot takes.
  Matrix matrix(int64_t count) const { return {data_.get(), count, padded_, padded_, 1, DType::kFloat32}; }

 private:
  template <class RowOf>
  void load_each(const Matrix& x, const float* pre_bias, const RowOf& row_of, int64_t count, int threads) {
    constexpr int64_t kShare = 16;
    parallel_for(ceil_div(count, kShare), threads, [&](int64_t task, int) {
      for (int64_t r = task * kShare; r < std::min(count, (task + 1) * kShare); ++r) {
        float* out = data_.get() + r * padded_;
        simd_.load_row(x, row_of(r), 0, depth_, out);
        for (int64_t k = 0; k < depth_ && pre_bias != nullptr; ++k) out[k] -= pre_bias[k];
        std::fill(out + depth_, out + padded_, 0.0f);
      }
    });
  }

  const Level& simd_;
  int64_t depth_, padded_;
  Buffer<float> data_;
};

// Consecutive latents as rows that `dot_rows` reads fast: themselves where they are, a copy where they are stored
// latent-contiguous (each element of a row in another cache line).
class LatentTile {
 public:
  LatentTile() = default;
  LatentTile(const Matrix& weight, int64_t columns) {
    if (weight.col_stride == 1) return;
    copy_ = Buffer<float>(columns * weight.cols);
    column_ = Buffer<float>(columns);
  }

  Matrix load(const Level& simd, const Matrix& weight, int64_t first, int64_t count) const {
    if (weight.col_stride == 1) {
      return {element(weight, first, 0), count, weight.cols, weight.row_stride, 1, weight.dtype};
    }
    const Matrix turned{weight.data, weight.cols, weight.rows, weight.col_stride, weight.row_stride, weight.dtype};
    for (int64_t k = 0; k < weight.cols; ++k) {
      simd.load_row(turned, k, first, count, column_.get());
      for (int64_t j = 0; j < count; ++j) copy_[j * weight.cols + k] = column_[j];
    }
    return {copy_.get(), count, weight.cols, weight.cols, 1, DType::kFloat32};
  }

 private:
  Buffer<float> copy_, column_;
};

}  // namespace saekernels
