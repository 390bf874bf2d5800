// 8 x 8 transposition in registers: what turns eight weight rows into panel order.
#pragma once

#include <immintrin.h>

#include "common/half.h"

namespace saekernels {
namespace {

inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load8(const Bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline __m256 load8(const F16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

// out[j * stride + i] = src[i * src_stride + j] for i, j < 8.
template <class T>
inline void transpose8(const T* src, int64_t src_stride, float* out, int64_t stride) {
  __m256 rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = load8(src + i * src_stride);
  __m256 pairs[8];
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  __m256 quads[8];
  for (int half = 0; half < 2; ++half) {
    const __m256* p = pairs + 4 * half;
    quads[4 * half + 0] = _mm256_shuffle_ps(p[0], p[2], 0x44);
    quads[4 * half + 1] = _mm256_shuffle_ps(p[0], p[2], 0xee);
    quads[4 * half + 2] = _mm256_shuffle_ps(p[1], p[3], 0x44);
    quads[4 * half + 3] = _mm256_shuffle_ps(p[1], p[3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(out + j * stride, _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20));
    _mm256_storeu_ps(out + (4 + j) * stride, _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31));
  }
}

}  // namespace
}  // namespace saekernels
