// Packed-panel products. Every output element has an accumulator of its own that walks its block of terms in order,
// so neither the panel an element falls into nor the rows beside it can change its bits.
#pragma once

namespace saekernels {
namespace {

constexpr int kNr = kPanelVecs * Vec::kWidth;

// Transposes eight rows into columns [0, 8) of a panel. While it reads one group of rows it asks for the next: rows are
// short streams, over before the hardware has understood them. Rows a multiple of 4 KiB apart share their cache sets,
// where an early line would only push out one in use.
template <class T>
inline void pack_eight(const T* rows, int64_t stride, int64_t depth, float* out) {
  const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(T));
  const uintptr_t next = reinterpret_cast<uintptr_t>(rows) + static_cast<uintptr_t>(8 * row_bytes);  // or past the end
  const bool aliased = row_bytes % 4096 == 0;
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    for (int64_t i = 0; i < 8 && !aliased; ++i) {
      const int64_t offset = i * row_bytes + k * static_cast<int64_t>(sizeof(T));
      __builtin_prefetch(reinterpret_cast<const void*>(next + static_cast<uintptr_t>(offset)), 0, 3);
    }
    transpose8(rows + k, stride, out + k * kNr, kNr);
  }
  for (; k < depth; ++k) {
    for (int64_t i = 0; i < 8; ++i) out[k * kNr + i] = to_float(rows[i * stride + k]);
  }
}

template <class T>
inline void pack_rows(const Matrix& m, int64_t row, int64_t count, float* out) {
  const T* src = static_cast<const T*>(element(m, row, 0));
  if (m.row_stride == 1 && count == kNr) {  // stored latent-contiguous: already in panel order
    for (int64_t k = 0; k < m.cols; ++k) load_strided(src + k * m.col_stride, 1, kNr, out + k * kNr);
    return;
  }
  for (int64_t group = 0; group < kNr; group += 8) {
    const T* rows = src + group * m.row_stride;
    if (m.col_stride == 1 && group + 8 <= count) {
      pack_eight(rows, m.row_stride, m.cols, out + group);
      continue;
    }
    for (int64_t k = 0; k < m.cols; ++k) {
      for (int64_t i = 0; i < 8; ++i) {
        const bool inside = group + i < count;
        out[k * kNr + group + i] = inside ? to_float(rows[i * m.row_stride + k * m.col_stride]) : 0.0f;
      }
    }
  }
}

void pack_panel(const Matrix& m, int64_t row, int64_t count, float* out) {
  with_type(m.dtype, [&](auto* tag) {
    pack_rows<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(m, row, count, out);
  });
}

void panel_squares(const float* panel, int64_t depth, float* out) {
  constexpr int kChains = 4;  // of additions, to hide their latency
  Vec sums[kChains][kPanelVecs];
  for (int c = 0; c < kChains; ++c) {
    for (int j = 0; j < kPanelVecs; ++j) sums[c][j] = Vec::zero();
  }
  for (int64_t k = 0; k < depth; k += kChains) {
    const int64_t left = depth - k < kChains ? depth - k : kChains;
    for (int64_t c = 0; c < left; ++c) {
      for (int j = 0; j < kPanelVecs; ++j) {
        const Vec value = Vec::load(panel + (k + c) * kNr + j * Vec::kWidth);
        sums[c][j] = fma(value, value, sums[c][j]);
      }
    }
  }
  for (int j = 0; j < kPanelVecs; ++j) {
    ((sums[0][j] + sums[1][j]) + (sums[2][j] + sums[3][j])).store(out + j * Vec::kWidth);
  }
}

// How the rows that meet a panel lie: packed side by side, a[depth][kMr], or one after the other, a[rows][kDotBlock].
struct PackedRows {
  static const float* at(const float* a, int64_t k, int r) { return a + k * kMr + r; }
  static const float* block(const float* a, int64_t row, int64_t depth, int64_t k) { return a + row * depth + k * kMr; }
};
struct PlainRows {
  static const float* at(const float* a, int64_t k, int r) { return a + r * kDotBlock + k; }
  static const float* block(const float* a, int64_t row, int64_t, int64_t) { return a + row * kDotBlock; }
};

// c[kRows][kNr] (+)= the first kRows of `a` times b[depth][kNr].
template <class Rows, int kRows>
inline void micro_kernel(const float* a, const float* b, int64_t depth, float* c, int64_t ldc, bool first) {
  Vec acc[kRows][kPanelVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVecs; ++j) acc[r][j] = Vec::zero();
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec panel[kPanelVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVecs; ++j) panel[j] = Vec::load(b + k * kNr + j * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = Vec::broadcast_from(Rows::at(a, k, r));
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVecs; ++j) acc[r][j] = fma(x, panel[j], acc[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVecs; ++j) {
      float* out = c + r * ldc + j * Vec::kWidth;
      (first ? acc[r][j] : Vec::load(out) + acc[r][j]).store(out);
    }
  }
}

template <class Rows, int kRows>
inline void micro_kernel_for(int rows, const float* a, const float* b, int64_t depth, float* c, int64_t ldc,
                             bool first) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return micro_kernel_for<Rows, kRows - 1>(rows, a, b, depth, c, ldc, first);
  }
  micro_kernel<Rows, kRows>(a, b, depth, c, ldc, first);
}

template <class Rows>
inline void tile_of_rows(const float* a, int64_t rows, const float* b, int64_t panels, int64_t depth, float* c,
                         int64_t ldc, bool add) {
  if (depth == 0 && !add) {
    for (int64_t r = 0; r < rows; ++r) memset(c + r * ldc, 0, static_cast<size_t>(panels * kNr) * sizeof(float));
  }
  for (int64_t k = 0; k < depth; k += kDotBlock) {
    const int64_t block = depth - k < kDotBlock ? depth - k : kDotBlock;
    for (int64_t p = 0; p < panels; ++p) {
      const float* panel = b + (p * depth + k) * kNr;
      for (int64_t r = 0; r < rows; r += kMr) {
        const int left = rows - r < kMr ? static_cast<int>(rows - r) : kMr;
        micro_kernel_for<Rows, kMr>(left, Rows::block(a, r, depth, k), panel, block, c + r * ldc + p * kNr, ldc,
                                    k == 0 && !add);
      }
    }
  }
}

void gemm_tile(const float* a, int64_t rows, const float* b, int64_t panels, int64_t depth, float* c, int64_t ldc,
               bool add) {
  tile_of_rows<PackedRows>(a, rows, b, panels, depth, c, ldc, add);
}

void rows_tile(const float* a, int64_t rows, const float* b, int64_t panels, int64_t depth, float* c, int64_t ldc,
               bool add) {
  tile_of_rows<PlainRows>(a, rows, b, panels, depth, c, ldc, add);
}

}  // namespace
}  // namespace saekernels
