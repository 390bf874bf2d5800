// The int16 panel product with AVX2: sums of two products, then an addition.
#pragma once

namespace saekernels {
namespace {

struct PairsDot {
  static constexpr int kRows = 4, kPanels = 1;
  struct Sums {
    __m256i low, high;
  };
  using Latents = Sums;
  using Word = __m256i;
  static Sums start(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Latents load(const char* p) {
    const auto* words = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
  }
  static Word broadcast(const char* p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
  }
  static void add(Sums* sums, const Latents& latents, Word x) {
    sums->low = _mm256_add_epi32(sums->low, _mm256_madd_epi16(latents.low, x));
    sums->high = _mm256_add_epi32(sums->high, _mm256_madd_epi16(latents.high, x));
  }
  static void store(const Sums& sums, float row_scale, const float* scales, float* c) {
    const __m256 scale = _mm256_set1_ps(row_scale);
    const __m256 low = _mm256_mul_ps(_mm256_cvtepi32_ps(sums.low), scale);
    const __m256 high = _mm256_mul_ps(_mm256_cvtepi32_ps(sums.high), scale);
    _mm256_storeu_ps(c, _mm256_mul_ps(low, _mm256_loadu_ps(scales)));
    _mm256_storeu_ps(c + 8, _mm256_mul_ps(high, _mm256_loadu_ps(scales + 8)));
  }
};

}  // namespace
}  // namespace saekernels
