// The bf16 and int8 panel products with the matrix instructions of Armv8.6: two latents of 8 bytes times two rows.
//
// bfmmla adds two products to each other and then to the sum, each time rounded to odd, twice in turn. An addition is
// therefore off by less than 2^-23 of its result, and a product goes through n / 2 + 1 of them in a sum of n: together
// that is g(n + 2) of bounds.h, whose spare terms cover the 2. Subnormals count as zero on the way in and out, which is
// at most 2^-126 for the product, and as much for each half of an addition per term. With FPCR.EBF set, which no system
// does by itself, products are fused and rounded to nearest, and sums are nearer still. (Arm Architecture Reference
// Manual, DDI 0487: pseudocode BFDotAdd, BFMulH, FPAdd_BF16.) Sums of usmmla are exact, modulo 2^32.
#pragma once

namespace saekernels {
namespace {

// sums: of latents l and l + 1 with rows r and r + 1: [l r][l r+1][l+1 r][l+1 r+1].
struct Bf16Matrix {
  using Sums = float32x4_t;
  static Sums add(Sums sums, uint32x4_t latents, uint32x4_t rows) {
    return vbfmmlaq_f32(sums, vreinterpretq_bf16_u32(latents), vreinterpretq_bf16_u32(rows));
  }
};
struct Int8Matrix {
  using Sums = int32x4_t;
  static Sums add(Sums sums, uint32x4_t latents, uint32x4_t rows) {
    return vusmmlaq_s32(sums, vreinterpretq_u8_u32(latents), vreinterpretq_s8_u32(rows));
  }
};

constexpr int kMatrixRows = 8, kMatrixLatents = 8;

// Adds 2 kPairs rows, which lie in one panel, times half a panel of latents.
template <class Matrix, int kPairs>
inline void matrix_block(const char* a, const char* b, int64_t width, bool ask,
                         typename Matrix::Sums sums[kPairs][kMatrixLatents / 2]) {
  constexpr int64_t kWord = 4 * kScreenPanel;  // bytes from one word of latents to the next
  for (int64_t block = 0; block < width; block += 64) {
    const char* rows = a + block * kScreenPanel;
    for (int64_t k = 0; k < 64; k += 16) {
      uint32x4_t x[kPairs][2];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        const auto* first = reinterpret_cast<const uint64_t*>(rows + 2 * p * 64 + k);
        const uint64x2_t upper = vld1q_u64(first), lower = vld1q_u64(first + 8);
        x[p][0] = vreinterpretq_u32_u64(vzip1q_u64(upper, lower));
        x[p][1] = vreinterpretq_u32_u64(vzip2q_u64(upper, lower));
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const char* words = b + (block + k + 8 * half) * kScreenPanel;
        if (ask) {
          ask_for(reinterpret_cast<uintptr_t>(words) + kAheadBytes);
          ask_for(reinterpret_cast<uintptr_t>(words) + kAheadBytes + kWord);
        }
        uint32x4_t w[kMatrixLatents / 2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const auto* four = reinterpret_cast<const uint32_t*>(words + 16 * i);
          const uint32x4_t begin = vld1q_u32(four), end = vld1q_u32(four + kWord / 4);
          w[2 * i] = vzip1q_u32(begin, end);
          w[2 * i + 1] = vzip2q_u32(begin, end);
        }
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
          for (int q = 0; q < kMatrixLatents / 2; ++q) sums[p][q] = Matrix::add(sums[p][q], w[q], x[p][half]);
        }
      }
    }
  }
}

// Calls visit(row, latent, rows from there, half a panel of latents from there, whether they come from memory).
template <class Visit>
inline void each_block(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, int64_t step,
                       const Visit& visit) {
  for (int64_t j = 0; j < panels * kScreenPanel; j += kMatrixLatents) {
    const char* latents = b + j / kScreenPanel * width * kScreenPanel + j % kScreenPanel * 4;
    for (int64_t r = 0; r < rows; r += step) {
      const char* from = a + r / kScreenPanel * width * kScreenPanel + r % kScreenPanel * 64;
      visit(r, j, from, latents, r == 0 && j % kScreenPanel == 0);
    }
  }
}

void bf16_tile_matrix(const Bf16* a, int64_t rows, const Bf16* b, int64_t panels, int64_t depth, float* c, int64_t ldc,
                      bool add) {
  constexpr int kPairs = kMatrixRows / 2;
  const auto visit = [&](int64_t r, int64_t j, const char* from, const char* latents, bool ask) {
    float32x4_t sums[kPairs][kMatrixLatents / 2];
    float* out = c + r * ldc + j;
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
      for (int q = 0; q < kMatrixLatents / 2; ++q) sums[p][q] = vdupq_n_f32(0);
      if (!add) continue;
      for (int q = 0; q < kMatrixLatents / 2; q += 2) {
        const float* upper = out + 2 * p * ldc + 2 * q;
        sums[p][q] = vzip1q_f32(vld1q_f32(upper), vld1q_f32(upper + ldc));
        sums[p][q + 1] = vzip2q_f32(vld1q_f32(upper), vld1q_f32(upper + ldc));
      }
    }
    matrix_block<Bf16Matrix, kPairs>(from, latents, 2 * depth, ask, sums);
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
      for (int q = 0; q < kMatrixLatents / 2; q += 2) {
        float* upper = out + 2 * p * ldc + 2 * q;
        vst1q_f32(upper, vuzp1q_f32(sums[p][q], sums[p][q + 1]));
        vst1q_f32(upper + ldc, vuzp2q_f32(sums[p][q], sums[p][q + 1]));
      }
    }
  };
  each_block(reinterpret_cast<const char*>(a), rows, reinterpret_cast<const char*>(b), panels, 2 * depth, kMatrixRows,
             visit);
}

inline void store_scores(int32x4_t sums, float row_scale, const float* scales, float* c) {
  vst1q_f32(c, vmulq_f32(vmulq_n_f32(vcvtq_f32_s32(sums), row_scale), vld1q_f32(scales)));
}

template <int kPairs>
void int8_rows_matrix(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width,
                      const float* row_scales, const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  const auto visit = [&](int64_t r, int64_t j, const char* from, const char* latents, bool ask) {
    int32x4_t sums[kPairs][kMatrixLatents / 2];
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      const int32x2_t both = vld1_s32(starts + r + 2 * p);
#pragma GCC unroll 4
      for (int q = 0; q < kMatrixLatents / 2; ++q) sums[p][q] = vcombine_s32(both, both);
    }
    matrix_block<Int8Matrix, kPairs>(from, latents, width, ask, sums);
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
      for (int q = 0; q < kMatrixLatents / 2; q += 2) {
        const int64_t row = r + 2 * p, latent = j + 2 * q;
        float* out = c + row * ldc + latent;
        store_scores(vuzp1q_s32(sums[p][q], sums[p][q + 1]), row_scales[row], scales + latent, out);
        store_scores(vuzp2q_s32(sums[p][q], sums[p][q + 1]), row_scales[row + 1], scales + latent, out + ldc);
      }
    }
  };
  each_block(a, rows, b, panels, width, 2 * kPairs, visit);
}

void int8_tile_matrix(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width,
                      const float* row_scales, const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  const auto multiply = rows <= 2   ? int8_rows_matrix<1>
                        : rows <= 4 ? int8_rows_matrix<2>
                                    : int8_rows_matrix<kMatrixRows / 2>;
  multiply(a, rows, b, panels, width, row_scales, starts, scales, c, ldc);
}

}  // namespace
}  // namespace saekernels
