// The one dot product whose bits reach the caller: what a score, a gradient of a value, or a threshold decision is.
#pragma once

namespace saekernels {
namespace {

// Lane l of kDotLanes sums the terms j = l (mod kDotLanes) in order; lanes are then folded in halves. The same order at
// every vector width.
inline float fold_lanes(Vec* acc) {
  for (int n = kDotLanes / Vec::kWidth; n > 1; n /= 2) {
    for (int i = 0; i < n / 2; ++i) acc[i] = acc[i] + acc[i + n / 2];
  }
  return fold(acc[0]);
}

// Dots of a with kRows rows at once: their loads overlap, and each keeps its own order.
template <class T, int kRows>
inline void dots(const float* a, const T* const* rows, int64_t stride, int64_t count, float* out) {
  constexpr int kVecs = kDotLanes / Vec::kWidth;
  Vec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVecs; ++i) acc[r][i] = Vec::zero();
  }
  const int64_t whole = stride == 1 ? count - count % kDotLanes : 0;
  int64_t j = 0;
  for (; j < whole; j += kDotLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      const int64_t at = j + i * Vec::kWidth;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r][i] = fma(Vec::load(a + at), Vec::load(rows[r] + at), acc[r][i]);
    }
  }
  for (; j < count; j += kDotLanes) {  // ragged or strided: through a padded copy, in the same order
    for (int r = 0; r < kRows; ++r) {
      float copy[kDotLanes];
      for (int64_t i = 0; i < kDotLanes; ++i) copy[i] = j + i < count ? to_float(rows[r][(j + i) * stride]) : 0.0f;
      for (int i = 0; i < kVecs; ++i) {
        const int64_t at = i * Vec::kWidth;
        acc[r][i] = fma(Vec::load(a + j + at), Vec::load(copy + at), acc[r][i]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) out[r] = fold_lanes(acc[r]);
}

// Both rows are fp32 and zero-padded to a multiple of kDotLanes.
float dot(const float* a, const float* b, int64_t padded) {
  float out;
  dots<float, 1>(a, &b, 1, padded, &out);
  return out;
}

// One row with consecutive rows of m.
template <class T>
inline void dot_rows_typed(const float* a, const Matrix& m, int64_t first, int64_t count, float* out) {
  constexpr int64_t kGroup = 2;
  const T* base = static_cast<const T*>(m.data) + first * m.row_stride;
  int64_t j = 0;
  for (; j + kGroup <= count; j += kGroup) {
    const T* group[kGroup] = {base + j * m.row_stride, base + (j + 1) * m.row_stride};
    dots<T, kGroup>(a, group, m.col_stride, m.cols, out + j);
  }
  if (j < count) {
    const T* last = base + j * m.row_stride;
    dots<T, 1>(a, &last, m.col_stride, m.cols, out + j);
  }
}

void dot_rows(const float* a, const Matrix& m, int64_t first, int64_t count, float* out) {
  with_type(m.dtype, [&](auto* tag) {
    dot_rows_typed<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(a, m, first, count, out);
  });
}

}  // namespace
}  // namespace saekernels
