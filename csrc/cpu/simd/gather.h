// Sums over gathered rows and dots with them. Rows come in any order, so each is prefetched while earlier ones are
// used.
#pragma once

namespace saekernels {
namespace {

// A sum takes its rows a strip of columns at a time: as many as are accumulated in registers, so that nothing is loaded
// but the rows, and each strip of a row is fetched while those of kAhead rows before it are added.
constexpr int kStripVecs = 8;
// 512 bytes of a row with AVX-512, where half of the registers suffice for either size of element.
template <class T>
constexpr int kVecsOf = kStripVecs * (Vec::kWidth == 16 ? 4 / static_cast<int>(sizeof(T)) : 1);
constexpr int64_t kAhead = 8;

template <class T, int kVecs>
struct Strip {
  static constexpr int64_t kColumns = kVecs * Vec::kWidth;
  // One load of bf16 fills two vectors, even and odd columns, at half the instructions of widening each.
  static constexpr bool kPairs = std::is_same_v<T, Bf16> && kVecs % 2 == 0;

  Strip() {
#pragma GCC unroll 16
    for (Vec& lanes : sum) lanes = Vec::zero();
  }

  static void prefetch(const T* row) {
#pragma GCC unroll 16
    for (size_t byte = 0; byte < kColumns * sizeof(T); byte += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, 3);
    }
  }

  void add(Vec weight, const T* row) {
    if constexpr (kPairs) {
#pragma GCC unroll 16
      for (int i = 0; i < kVecs; i += 2) {
        Vec even, odd;
        load_pairs(row + i * Vec::kWidth, &even, &odd);
        sum[i] = fma(weight, even, sum[i]);
        sum[i + 1] = fma(weight, odd, sum[i + 1]);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kVecs; ++i) sum[i] = fma(weight, Vec::load(row + i * Vec::kWidth), sum[i]);
    }
  }

  void store(float* out) const {
    if constexpr (kPairs) {
#pragma GCC unroll 16
      for (int i = 0; i < kVecs; i += 2) store_pairs(sum[i], sum[i + 1], out + i * Vec::kWidth);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kVecs; ++i) sum[i].store(out + i * Vec::kWidth);
    }
  }

  Vec sum[kVecs];
};

// What is wanted after the last row of a strip: `count` rows, from the column at `base`.
template <class T>
struct NextStrip {
  const T* base;
  const int32_t* ids;
  int64_t count;
};

template <class T, int kVecs>
inline void sum_strip(float* out, const float* weights, const int32_t* ids, int64_t n, const T* base,
                      int64_t row_stride, const NextStrip<T>& next) {
  Strip<T, kVecs> strip;
  const int64_t ahead = std::min(kAhead, n);
  int64_t e = 0;
  for (; e < n - ahead; ++e) {
    strip.prefetch(base + ids[e + ahead] * row_stride);
    strip.add(Vec::broadcast(weights[e]), base + ids[e] * row_stride);
  }
  for (int64_t i = 0; e < n; ++e, ++i) {
    if (i < next.count) Strip<T, kVecsOf<T>>::prefetch(next.base + next.ids[i] * row_stride);
    strip.add(Vec::broadcast(weights[e]), base + ids[e] * row_stride);
  }
  strip.store(out);
}

template <class T>
inline void gather_sum_typed(float* out, const float* weights, const int32_t* ids, int64_t n, int64_t ahead,
                             const Matrix& m) {
  const T* base = static_cast<const T*>(m.data);
  int64_t j = 0;
  const auto strips = [&](auto vecs) {
    constexpr int kVecs = vecs;
    for (; j + kVecs * Vec::kWidth <= m.cols; j += kVecs * Vec::kWidth) {
      const int64_t end = j + kVecs * Vec::kWidth;
      const NextStrip<T> next = end < m.cols ? NextStrip<T>{base + end, ids, n} : NextStrip<T>{base, ids + n, ahead};
      sum_strip<T, kVecs>(out + j, weights, ids, n, base + j, m.row_stride, next);
    }
  };
  if (m.col_stride == 1) {
    strips(std::integral_constant<int, kVecsOf<T>>{});
    strips(std::integral_constant<int, 4>{});
    strips(std::integral_constant<int, 1>{});
  }
  for (; j < m.cols; ++j) {
    const T* column = base + j * m.col_stride;
    float sum = 0;
    for (int64_t e = 0; e < n; ++e) sum = fma(weights[e], to_float(column[ids[e] * m.row_stride]), sum);
    out[j] = sum;
  }
}

void gather_sum(float* out, const float* weights, const int32_t* ids, int64_t n, int64_t ahead, const Matrix& m) {
  with_type(m.dtype, [&](auto* tag) {
    gather_sum_typed<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(out, weights, ids, n, ahead, m);
  });
}

// The beginning of a row is enough: the hardware follows a stream once it has started, and asking for whole rows
// fills the miss queue with lines that are needed last.
constexpr int64_t kPrefetchBytes = 512;

inline void prefetch_start(const void* row, const Matrix& m) {
  const char* p = static_cast<const char*>(row);
  const int64_t bytes = m.col_stride == 1 ? m.cols * element_size(m.dtype) : 0;
  const int64_t end = bytes < kPrefetchBytes ? bytes : kPrefetchBytes;
  for (int64_t offset = 0; offset < end; offset += 64) __builtin_prefetch(p + offset, 0, 3);
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
    dots<T, 1, kGroup>(a, 0, rows, m.col_stride, m.cols, out + e, 0);
  }
  if (e < n) {
    const T* row = base + ids[e] * m.row_stride;
    dots<T, 1, 1>(a, 0, &row, m.col_stride, m.cols, out + e, 0);
  }
}

void gather_dot(const float* a, const int32_t* ids, int64_t n, const Matrix& m, float* out) {
  with_type(m.dtype, [&](auto* tag) {
    gather_dot_typed<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(a, ids, n, m, out);
  });
}

}  // namespace
}  // namespace saekernels
