// The integer panel products with the dot instructions of AVX512-VNNI: two int16 or four int8 of sixteen latents each.
// Bytes of latents are unsigned, 128 too large: sums start at what corrects that. They may wrap around on the way, and
// end right.
#pragma once

namespace saekernels {
namespace {

template <bool kBytes>
struct VnniDot {
  static constexpr int kRows = 8, kPanels = 2;
  using Sums = __m512i;
  using Latents = __m512i;
  using Word = __m512i;
  static Sums start(int32_t start) { return kBytes ? _mm512_set1_epi32(start) : _mm512_setzero_si512(); }
  static Latents load(const char* p) { return _mm512_loadu_si512(p); }
  static Word broadcast(const char* p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
  }
  static void add(Sums* sums, Latents latents, Word x) {
    *sums = kBytes ? _mm512_dpbusd_epi32(*sums, latents, x) : _mm512_dpwssd_epi32(*sums, latents, x);
  }
  static void store(Sums sums, float row_scale, const float* scales, float* c) {
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(row_scale));
    _mm512_storeu_ps(c, _mm512_mul_ps(scaled, _mm512_loadu_ps(scales)));
  }
};

}  // namespace
}  // namespace saekernels
