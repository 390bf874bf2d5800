// Four fp32 lanes through the compiler's vector extensions: SSE2 on any x86-64, NEON on arm64.
#pragma once

#include "common/half.h"

namespace saekernels {
namespace {

constexpr int kMr = 4;
constexpr int kPanelVecs = 2;

struct Vec {
  static constexpr int kWidth = 4;
  typedef float Lanes __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  Lanes v;

  static Vec zero() { return {Lanes{0, 0, 0, 0}}; }
  static Vec broadcast(float x) { return {Lanes{x, x, x, x}}; }
  static Vec broadcast_from(const float* p) { return broadcast(*p); }
  static Vec load(const float* p) {
    Vec r;
    memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  template <class T>
  static Vec load(const T* p) {
    return {Lanes{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
  }
  void store(float* p) const { memcpy(p, &v, sizeof v); }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < kWidth; ++i) from_float(v[i], p + i);
  }
};

inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }

// A fused multiply-add where the machine has one; calling libm for it would cost fifty times the product.
inline float fma(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__FP_FAST_FMAF)
  return {Vec::Lanes{fma(a.v[0], b.v[0], c.v[0]), fma(a.v[1], b.v[1], c.v[1]), fma(a.v[2], b.v[2], c.v[2]),
                     fma(a.v[3], b.v[3], c.v[3])}};
#else
  return {a.v * b.v + c.v};
#endif
}

inline Vec::Ints bits_of(Vec a) {
  Vec::Ints r;
  memcpy(&r, &a.v, sizeof r);
  return r;
}
inline Vec from_bits(Vec::Ints a) {
  Vec r;
  memcpy(&r.v, &a, sizeof a);
  return r;
}
inline Vec choose(Vec::Ints mask, Vec yes, Vec no) { return from_bits((bits_of(yes) & mask) | (bits_of(no) & ~mask)); }

inline Vec sqrt(Vec a) {
  return {
      Vec::Lanes{__builtin_sqrtf(a.v[0]), __builtin_sqrtf(a.v[1]), __builtin_sqrtf(a.v[2]), __builtin_sqrtf(a.v[3])}};
}
inline Vec abs(Vec a) { return from_bits(bits_of(a) & 0x7fffffff); }
inline Vec copy_sign(Vec magnitude, Vec sign) {
  const Vec::Ints sign_bit = {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
  return from_bits(bits_of(magnitude) | (bits_of(sign) & sign_bit));
}
// Both keep NaN only when it is in the second argument.
inline Vec max(Vec a, Vec b) { return choose(a.v > b.v, a, b); }
inline Vec min(Vec a, Vec b) { return choose(a.v < b.v, a, b); }

inline unsigned mask_bits(Vec::Ints m) {
  return (m[0] ? 1u : 0u) | (m[1] ? 2u : 0u) | (m[2] ? 4u : 0u) | (m[3] ? 8u : 0u);
}
inline unsigned mask_not_le(Vec a, Vec b) { return mask_bits(~(a.v <= b.v)); }
inline unsigned mask_eq(Vec a, Vec b) { return mask_bits(a.v == b.v); }
inline unsigned mask_nan(Vec a) { return mask_bits(a.v != a.v); }
// a < b ? yes : no, lane by lane; false where either is NaN.
inline Vec select_lt(Vec a, Vec b, Vec yes, Vec no) { return choose(a.v < b.v, yes, no); }
// Lanes added in halves: 4 to 2 to 1.
inline float fold(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
// 2 x kWidth bf16 as the fp32 of even and of odd positions.
inline void load_pairs(const Bf16* p, Vec* even, Vec* odd) {
  for (int i = 0; i < Vec::kWidth; ++i) {
    even->v[i] = to_float(p[2 * i]);
    odd->v[i] = to_float(p[2 * i + 1]);
  }
}
// The way back: 2 x kWidth fp32 in their order.
inline void store_pairs(Vec even, Vec odd, float* out) {
  for (int i = 0; i < Vec::kWidth; ++i) {
    out[2 * i] = even.v[i];
    out[2 * i + 1] = odd.v[i];
  }
}
// Adding 1.5 * 2^23 leaves no fraction bits: to nearest even for |a| < 2^22. NaN stays.
inline Vec round_to_int(Vec a) {
  const Vec magic = Vec::broadcast(12582912.0f);
  return (a + magic) - magic;
}
// 2^n for integral n in [-126, 127].
inline Vec pow2(Vec n) { return from_bits((__builtin_convertvector(n.v, Vec::Ints) + 127) << 23); }

// Sums of fp32 lanes kept in fp64.
struct DoubleSum {
  double lanes[4] = {0, 0, 0, 0};

  void add(Vec a) {
    for (int i = 0; i < 4; ++i) lanes[i] += static_cast<double>(a.v[i]);
  }
  void add_product(Vec a, Vec b) {
    for (int i = 0; i < 4; ++i) lanes[i] += static_cast<double>(a.v[i]) * static_cast<double>(b.v[i]);
  }
  double total() const { return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]); }
};

template <class T>
inline void transpose8(const T* src, int64_t src_stride, float* out, int64_t stride) {
  for (int j = 0; j < 8; ++j) {
    for (int i = 0; i < 8; ++i) out[j * stride + i] = to_float(src[i * src_stride + j]);
  }
}

}  // namespace
}  // namespace saekernels
