// Screening in integers: rows and latents as integers times a scale of their own.
//
// int8: the largest magnitude becomes 127. int16: as large as it may be for the sum of products of any two such rows to
// fit 32 bits, which by Cauchy-Schwarz it does if no row's norm exceeds 46340; partial sums are sums of parts of the
// rows, so they fit as well. Every sum is then exact.
#pragma once

namespace saekernels {
namespace {

constexpr float kInt8Most = 127, kInt16Most = 32767, kInt16Norm = 46340;

inline float largest_magnitude(const float* in, int64_t n) {
  Vec most = Vec::zero();
  for (int64_t j = 0; j < n; j += Vec::kWidth) most = max(abs(Vec::load(in + j)), most);
  float lanes[Vec::kWidth], largest = 0;
  most.store(lanes);
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// 0 where a row cannot be told from zero, or products of scales might leave the range of fp32: the row is then all
// error.
inline float scale_for(const float* in, int64_t n, float norm, Screening kind) {
  const float largest = largest_magnitude(in, n);
  float scale = largest / kInt8Most;
  if (kind == Screening::kInt16) {
    // Rounding adds up to half an integer to each element.
    const float room = kInt16Norm - 0.51f * __builtin_sqrtf(static_cast<float>(n)) - 2;
    if (!(room > 1)) return 0;
    scale = norm / room;
    if (scale < largest / kInt16Most) scale = largest / kInt16Most;
  }
  scale *= 1 + 0x1p-20f;
  return scale > 0x1p-100f && scale < 0x1p60f && norm < 0x1p100f ? scale : 0;
}

template <class T>
inline Quantised quantise_as(const float* in, int64_t n, float scale, int zero, T* out) {
  constexpr int kVecs = kDotLanes / Vec::kWidth;
  const Vec inverse = Vec::broadcast(scale > 0 ? 1 / scale : 0), back = Vec::broadcast(-scale);
  Vec sums[kVecs];
  for (int i = 0; i < kVecs; ++i) sums[i] = Vec::zero();
  int32_t total = 0;
  for (int64_t j = 0; j < n; j += kDotLanes) {
    float rounded[kDotLanes];
    for (int i = 0; i < kVecs; ++i) {
      const Vec value = Vec::load(in + j + i * Vec::kWidth);
      const Vec integer = scale > 0 ? round_to_int(value * inverse) : Vec::zero();
      integer.store(rounded + i * Vec::kWidth);
      const Vec error = fma(integer, back, value);
      sums[i] = fma(error, error, sums[i]);
    }
    for (int i = 0; i < kDotLanes; ++i) {
      const int32_t integer = static_cast<int32_t>(rounded[i]);
      total += integer;
      out[j + i] = static_cast<T>(integer + zero);
    }
  }
  return {scale, fold_lanes(sums), total};
}

Quantised quantise(const float* in, int64_t n, float norm, Screening kind, int zero, void* out) {
  const float scale = scale_for(in, n, norm, kind);
  if (kind == Screening::kInt8) return quantise_as(in, n, scale, zero, static_cast<uint8_t*>(out));
  return quantise_as(in, n, scale, zero, static_cast<int16_t*>(out));
}

}  // namespace
}  // namespace saekernels
