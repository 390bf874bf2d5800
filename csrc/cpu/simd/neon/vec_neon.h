// Eight fp32 lanes in two NEON registers (any arm64). Eight and not four, because this is then AVX2 in all that a level
// may choose: also sums whose order depends on the width, those of the loss, have its bits.
#pragma once

#include <arm_neon.h>

#include "common/half.h"

namespace saekernels {
namespace {

constexpr int kMr = 6;  // 24 accumulators, 4 registers of a panel, 1 broadcast
constexpr int kPanelVecs = 2;

struct Vec {
  static constexpr int kWidth = 8;
  float32x4_t low, high;

  static Vec zero() { return broadcast(0.0f); }
  static Vec broadcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static Vec broadcast_from(const float* p) { return {vld1q_dup_f32(p), vld1q_dup_f32(p)}; }
  static Vec load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static Vec load(const Bf16* p) {
    const uint16x8_t bits = vld1q_u16(&p->bits);
    return from_bits(vshlq_n_u32(vmovl_u16(vget_low_u16(bits)), 16), vshlq_n_u32(vmovl_high_u16(bits), 16));
  }
  static Vec load(const F16* p) {
    const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
  }
  void store(float* p) const {
    vst1q_f32(p, low);
    vst1q_f32(p + 4, high);
  }
  void store(Bf16* p) const { vst1q_u16(&p->bits, vcombine_u16(to_bf16(low), to_bf16(high))); }
  void store(F16* p) const { vst1q_u16(&p->bits, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high))); }

  static Vec from_bits(uint32x4_t low, uint32x4_t high) {
    return {vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)};
  }

 private:
  static uint16x4_t to_bf16(float32x4_t a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
  }
};

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline Vec sqrt(Vec a) { return {vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }
inline Vec abs(Vec a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }

inline float32x4_t or_sign(float32x4_t magnitude, float32x4_t sign) {
  const uint32x4_t bit = vandq_u32(vreinterpretq_u32_f32(sign), vdupq_n_u32(0x80000000u));
  return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(magnitude), bit));
}
inline Vec copy_sign(Vec magnitude, Vec sign) {
  return {or_sign(magnitude.low, sign.low), or_sign(magnitude.high, sign.high)};
}

// A mask for each register, all ones where a condition holds.
struct Lanes {
  uint32x4_t low, high;
};
inline Lanes less(Vec a, Vec b) { return {vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high)}; }
inline Vec choose(Lanes where, Vec yes, Vec no) {
  return {vbslq_f32(where.low, yes.low, no.low), vbslq_f32(where.high, yes.high, no.high)};
}
inline unsigned mask_bits(Lanes where) {
  const uint32x4_t low = {1, 2, 4, 8}, high = {16, 32, 64, 128};
  return vaddvq_u32(vorrq_u32(vandq_u32(where.low, low), vandq_u32(where.high, high)));
}

// Both keep NaN only when it is in the second argument, which vmaxq and vminq do not.
inline Vec max(Vec a, Vec b) { return choose(less(b, a), a, b); }
inline Vec min(Vec a, Vec b) { return choose(less(a, b), a, b); }

inline unsigned mask_not_le(Vec a, Vec b) {
  return mask_bits({vmvnq_u32(vcleq_f32(a.low, b.low)), vmvnq_u32(vcleq_f32(a.high, b.high))});
}
inline unsigned mask_eq(Vec a, Vec b) { return mask_bits({vceqq_f32(a.low, b.low), vceqq_f32(a.high, b.high)}); }
inline unsigned mask_nan(Vec a) {
  return mask_bits({vmvnq_u32(vceqq_f32(a.low, a.low)), vmvnq_u32(vceqq_f32(a.high, a.high))});
}
// a < b ? yes : no, lane by lane; false where either is NaN.
inline Vec select_lt(Vec a, Vec b, Vec yes, Vec no) { return choose(less(a, b), yes, no); }
// Lanes added in halves: 8 to 4 to 2 to 1.
inline float fold(Vec a) {
  const float32x4_t four = vaddq_f32(a.low, a.high);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
// 2 x kWidth bf16 as the fp32 of even and of odd positions.
inline void load_pairs(const Bf16* p, Vec* even, Vec* odd) {
  const uint32x4_t low = vreinterpretq_u32_u16(vld1q_u16(&p->bits));
  const uint32x4_t high = vreinterpretq_u32_u16(vld1q_u16(&p[8].bits));
  const uint32x4_t upper = vdupq_n_u32(0xffff0000u);
  *even = Vec::from_bits(vshlq_n_u32(low, 16), vshlq_n_u32(high, 16));
  *odd = Vec::from_bits(vandq_u32(low, upper), vandq_u32(high, upper));
}
// The way back: 2 x kWidth fp32 in their order.
inline void store_pairs(Vec even, Vec odd, float* out) {
  const float32x4x2_t low = {{even.low, odd.low}}, high = {{even.high, odd.high}};  // a macro in Clang takes no braces
  vst2q_f32(out, low);
  vst2q_f32(out + Vec::kWidth, high);
}
inline Vec round_to_int(Vec a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
// 2^n for integral n in [-126, 127].
inline float32x4_t pow2(float32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
inline Vec pow2(Vec n) { return {pow2(n.low), pow2(n.high)}; }

// Sums of fp32 lanes kept in fp64.
struct DoubleSum {
  float64x2_t sums[4] = {vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)};

  void add(Vec a) {
    sums[0] = vaddq_f64(sums[0], vcvt_f64_f32(vget_low_f32(a.low)));
    sums[1] = vaddq_f64(sums[1], vcvt_high_f64_f32(a.low));
    sums[2] = vaddq_f64(sums[2], vcvt_f64_f32(vget_low_f32(a.high)));
    sums[3] = vaddq_f64(sums[3], vcvt_high_f64_f32(a.high));
  }
  void add_product(Vec a, Vec b) {
    sums[0] = vfmaq_f64(sums[0], vcvt_f64_f32(vget_low_f32(a.low)), vcvt_f64_f32(vget_low_f32(b.low)));
    sums[1] = vfmaq_f64(sums[1], vcvt_high_f64_f32(a.low), vcvt_high_f64_f32(b.low));
    sums[2] = vfmaq_f64(sums[2], vcvt_f64_f32(vget_low_f32(a.high)), vcvt_f64_f32(vget_low_f32(b.high)));
    sums[3] = vfmaq_f64(sums[3], vcvt_high_f64_f32(a.high), vcvt_high_f64_f32(b.high));
  }
  // In halves.
  double total() const {
    const float64x2_t two = vaddq_f64(vaddq_f64(sums[0], sums[2]), vaddq_f64(sums[1], sums[3]));
    return vgetq_lane_f64(two, 0) + vgetq_lane_f64(two, 1);
  }
};

// out[j * stride + i] = in[i][j] for i, j < 4.
inline void transpose4(const float32x4_t in[4], float* out, int64_t stride) {
  const float32x4_t even_low = vzip1q_f32(in[0], in[2]), even_high = vzip2q_f32(in[0], in[2]);
  const float32x4_t odd_low = vzip1q_f32(in[1], in[3]), odd_high = vzip2q_f32(in[1], in[3]);
  vst1q_f32(out, vzip1q_f32(even_low, odd_low));
  vst1q_f32(out + stride, vzip2q_f32(even_low, odd_low));
  vst1q_f32(out + 2 * stride, vzip1q_f32(even_high, odd_high));
  vst1q_f32(out + 3 * stride, vzip2q_f32(even_high, odd_high));
}

// out[j * stride + i] = src[i * src_stride + j] for i, j < 8.
template <class T>
inline void transpose8(const T* src, int64_t src_stride, float* out, int64_t stride) {
  for (int half = 0; half < 8; half += 4) {
    float32x4_t left[4], right[4];
    for (int i = 0; i < 4; ++i) {
      const Vec row = Vec::load(src + (half + i) * src_stride);
      left[i] = row.low;
      right[i] = row.high;
    }
    transpose4(left, out + half, stride);
    transpose4(right, out + 4 * stride + half, stride);
  }
}

}  // namespace
}  // namespace saekernels
