// Scalar conversions between fp32 and the 16-bit types: round to nearest even, subnormals, infinities and NaN kept.
#pragma once

#include <cstring>

#include "common/types.h"

namespace saekernels {

SK_INLINE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SK_INLINE float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SK_INLINE float to_float(float value) { return value; }

SK_INLINE float to_float(Bf16 value) { return float_from_bits(static_cast<uint32_t>(value.bits) << 16); }

SK_INLINE float to_float(F16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // inf, or NaN made quiet as the hardware conversion does
    const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
    return float_from_bits(sign | 0x7f800000u | quiet | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x400u) {  // zero or subnormal: magnitude * 2^-24 is exact in fp32
    const float scaled = static_cast<float>(magnitude) * 0x1p-24f;
    return float_from_bits(sign | float_bits(scaled));
  }
  return float_from_bits(sign | ((magnitude << 13) + 0x38000000u));
}

SK_INLINE void from_float(float value, float* out) { *out = value; }

SK_INLINE void from_float(float value, Bf16* out) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

SK_INLINE void from_float(float value, F16* out) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or beyond
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14. Adding 0.5 puts the last fp16 place at the last fp32 place, so the addition itself rounds to even.
    half = float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace saekernels
