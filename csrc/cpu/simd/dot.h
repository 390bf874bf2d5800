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

// Asks for the terms of one step, `ahead` of `terms`: maybe past the last row, hence no pointer. The hardware's own
// requests end with each page, and a page of 8 rows is soon read.
template <class T>
inline void ask_ahead(const T* terms, int64_t ahead) {
  constexpr size_t kLine = 64;
  const uintptr_t from = reinterpret_cast<uintptr_t>(terms) + static_cast<uintptr_t>(ahead) * sizeof(T);
  for (size_t offset = 0; offset < kDotLanes * sizeof(T); offset += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(from + offset), 0, 3);
  }
}

// Dots of kLefts rows a, `lda` apart, with kRows rows of weights at once: their loads overlap, each weight is read once
// for all of them, and each sum keeps its own order. out[l * ldo + r].
template <class T, int kLefts, int kRows>
inline void dots(const float* a, int64_t lda, const T* const* rows, int64_t stride, int64_t count, float* out,
                 int64_t ldo) {
  constexpr int kVecs = kDotLanes / Vec::kWidth;
  Vec acc[kLefts][kRows][kVecs];
  for (auto& of_left : acc) {
    for (auto& of_row : of_left) {
      for (Vec& lane : of_row) lane = Vec::zero();
    }
  }
  const int64_t whole = stride == 1 ? count - count % kDotLanes : 0;
  int64_t j = 0;
  for (; j < whole; j += kDotLanes) {
    if constexpr (kRows > 1) {
      constexpr int64_t kAhead = 1024 / sizeof(T);
      const int64_t ahead = kAhead + (j + kAhead < count ? 0 : rows[kRows - 1] - rows[0]);  // or in the next group
      for (int r = 0; r < kRows; ++r) ask_ahead(rows[r] + j, ahead);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      const int64_t at = j + i * Vec::kWidth;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec weights = Vec::load(rows[r] + at);
#pragma GCC unroll 4
        for (int l = 0; l < kLefts; ++l) acc[l][r][i] = fma(Vec::load(a + l * lda + at), weights, acc[l][r][i]);
      }
    }
  }
  for (; j < count; j += kDotLanes) {  // ragged or strided: through a padded copy, in the same order
    for (int r = 0; r < kRows; ++r) {
      float copy[kDotLanes];
      for (int64_t i = 0; i < kDotLanes; ++i) copy[i] = j + i < count ? to_float(rows[r][(j + i) * stride]) : 0.0f;
      for (int l = 0; l < kLefts; ++l) {
        for (int i = 0; i < kVecs; ++i) {
          const int64_t at = i * Vec::kWidth;
          acc[l][r][i] = fma(Vec::load(a + l * lda + j + at), Vec::load(copy + at), acc[l][r][i]);
        }
      }
    }
  }
  for (int l = 0; l < kLefts; ++l) {
    for (int r = 0; r < kRows; ++r) out[l * ldo + r] = fold_lanes(acc[l][r]);
  }
}

// Both rows are fp32 and zero-padded to a multiple of kDotLanes.
float dot(const float* a, const float* b, int64_t padded) {
  float out;
  dots<float, 1, 1>(a, 0, &b, 1, padded, &out, 0);
  return out;
}

// kLefts rows with consecutive rows of m, as many at a time as the registers hold: memory gives one row slowly, eight
// at once as fast as it can.
template <class T, int kLefts>
inline void dot_lefts(const float* a, int64_t lda, const Matrix& m, int64_t first, int64_t count, float* out,
                      int64_t ldo) {
  constexpr int64_t kGroup = Vec::kWidth == 16 ? (kLefts == 1 ? 8 : kLefts < 4 ? 4 : 2) : (kLefts == 1 ? 2 : 1);
  const T* base = static_cast<const T*>(m.data) + first * m.row_stride;
  int64_t j = 0;
  for (; j + kGroup <= count; j += kGroup) {
    const T* group[kGroup];
    for (int64_t r = 0; r < kGroup; ++r) group[r] = base + (j + r) * m.row_stride;
    dots<T, kLefts, kGroup>(a, lda, group, m.col_stride, m.cols, out + j, ldo);
  }
  for (; j < count; ++j) {
    const T* last = base + j * m.row_stride;
    dots<T, kLefts, 1>(a, lda, &last, m.col_stride, m.cols, out + j, ldo);
  }
}

template <class T>
inline void dot_rows_typed(const float* a, int64_t lda, int64_t n, const Matrix& m, int64_t first, int64_t count,
                           float* out, int64_t ldo) {
  int64_t i = 0;
  if constexpr (Vec::kWidth == 16) {
    for (; i + 4 <= n; i += 4) dot_lefts<T, 4>(a + i * lda, lda, m, first, count, out + i * ldo, ldo);
  }
  if ((n - i) % 2 == 1 && n - i > 1) {
    dot_lefts<T, 3>(a + i * lda, lda, m, first, count, out + i * ldo, ldo);
    i += 3;
  }
  for (; i + 2 <= n; i += 2) dot_lefts<T, 2>(a + i * lda, lda, m, first, count, out + i * ldo, ldo);
  if (i < n) dot_lefts<T, 1>(a + i * lda, lda, m, first, count, out + i * ldo, ldo);
}

void dot_rows(const float* a, int64_t lda, int64_t n, const Matrix& m, int64_t first, int64_t count, float* out,
              int64_t ldo) {
  with_type(m.dtype, [&](auto* tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    dot_rows_typed<T>(a, lda, n, m, first, count, out, ldo);
  });
}

}  // namespace
}  // namespace saekernels
