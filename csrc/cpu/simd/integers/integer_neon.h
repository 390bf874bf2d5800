// The int8 panel product with the dot instruction of Armv8.2, four int8 of four latents each. It takes both sides
// signed: latents, which are stored 128 too large, lose that by a flip of their top bit.
#pragma once

namespace saekernels {
namespace {

struct NeonDot {
  static constexpr int kRows = 4, kPanels = 1, kVecs = kScreenPanel / 4;
  struct Sums {
    int32x4_t v[kVecs];
  };
  struct Latents {
    int8x16_t v[kVecs];
  };
  using Word = int8x16_t;
  static Sums start(int32_t) { return {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
  static Latents load(const char* p) {
    Latents latents;
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const uint8_t*>(p) + 16 * i);
      latents.v[i] = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)));
    }
    return latents;
  }
  static Word broadcast(const char* p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
  }
  static void add(Sums* sums, const Latents& latents, Word x) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) sums->v[i] = vdotq_s32(sums->v[i], latents.v[i], x);
  }
  static void store(const Sums& sums, float row_scale, const float* scales, float* c) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      const float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(sums.v[i]), row_scale);
      vst1q_f32(c + 4 * i, vmulq_f32(scaled, vld1q_f32(scales + 4 * i)));
    }
  }
};

}  // namespace
}  // namespace saekernels
