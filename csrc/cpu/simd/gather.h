// Sums and dots over gathered rows. Rows come in any order, so each is prefetched while an earlier one is used.
#pragma once

namespace saekernels {
namespace {

constexpr int64_t kGatherGroup = 4;  // rows per pass: the accumulator is loaded and stored once for all of them

// The beginning of a row is enough: the hardware follows a stream once it has started, and asking for whole rows
// fills the miss queue with lines that are needed last.
constexpr int64_t kPrefetchBytes = 512;

inline void prefetch_start(const void* row, const Matrix& m) {
  const char* p = static_cast<const char*>(row);
  const int64_t bytes = m.col_stride == 1 ? m.cols * element_size(m.dtype) : 0;
  const int64_t end = bytes < kPrefetchBytes ? bytes : kPrefetchBytes;
  for (int64_t offset = 0; offset < end; offset += 64) __builtin_prefetch(p + offset, 0, 3);
}

template <class T, int kRows>
inline void accumulate(float* acc, const float* weights, const T* const* rows, int64_t stride, int64_t count) {
  int64_t j = 0;
  if (stride == 1) {
    Vec w[kRows];
    for (int i = 0; i < kRows; ++i) w[i] = Vec::broadcast(weights[i]);
    for (; j + Vec::kWidth <= count; j += Vec::kWidth) {
      Vec sum = Vec::load(acc + j);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sum = fma(w[i], Vec::load(rows[i] + j), sum);
      sum.store(acc + j);
    }
  }
  for (; j < count; ++j) {
    float sum = acc[j];
    for (int i = 0; i < kRows; ++i) sum = fma(weights[i], to_float(rows[i][j * stride]), sum);
    acc[j] = sum;
  }
}

template <class T>
inline void gather_sum_typed(float* acc, const float* weights, const int32_t* ids, int64_t n, const Matrix& m) {
  const T* base = static_cast<const T*>(m.data);
  int64_t e = 0;
  for (; e + kGatherGroup <= n; e += kGatherGroup) {
    const T* rows[kGatherGroup];
    for (int64_t i = 0; i < kGatherGroup; ++i) {
      rows[i] = base + ids[e + i] * m.row_stride;
      if (e + kGatherGroup + i < n) prefetch_start(base + ids[e + kGatherGroup + i] * m.row_stride, m);
    }
    accumulate<T, kGatherGroup>(acc, weights + e, rows, m.col_stride, m.cols);
  }
  for (; e < n; ++e) {
    const T* row = base + ids[e] * m.row_stride;
    accumulate<T, 1>(acc, weights + e, &row, m.col_stride, m.cols);
  }
}

void gather_sum(float* acc, const float* weights, const int32_t* ids, int64_t n, const Matrix& m) {
  with_type(m.dtype, [&](auto* tag) {
    gather_sum_typed<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(acc, weights, ids, n, m);
  });
}

template <class T>
inline void gather_dot_typed(const float* a, const int32_t* ids, int64_t n, const Matrix& m, float* out) {
  constexpr int64_t kGroup = 2;
  const T* base = static_cast<const T*>(m.data);
  int64_t e = 0;
  for (; e + kGroup <= n; e += kGroup) {
    const T* rows[kGroup];
    for (int64_t i = 0; i < kGroup; ++i) {
      rows[i] = base + ids[e + i] * m.row_stride;
      if (e + kGroup + i < n) prefetch_start(base + ids[e + kGroup + i] * m.row_stride, m);
    }
    dots<T, kGroup>(a, rows, m.col_stride, m.cols, out + e);
  }
  if (e < n) {
    const T* row = base + ids[e] * m.row_stride;
    dots<T, 1>(a, &row, m.col_stride, m.cols, out + e);
  }
}

void gather_dot(const float* a, const int32_t* ids, int64_t n, const Matrix& m, float* out) {
  with_type(m.dtype, [&](auto* tag) {
    gather_dot_typed<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(a, ids, n, m, out);
  });
}

}  // namespace
}  // namespace saekernels
