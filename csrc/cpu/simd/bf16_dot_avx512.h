// The bf16 panel product with the dot instruction of AVX512-BF16: two depths of sixteen latents per instruction.
#pragma once

namespace saekernels {
namespace {

struct InstructionDot {
  static constexpr int kVecs = 1;
  static constexpr int kRows = 16;
  using Pairs = __m512bh;
  static Pairs load(const Bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Pairs broadcast(const Bf16* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vec add(Vec sum, Pairs a, Pairs b) { return {_mm512_dpbf16_ps(sum.v, a, b)}; }
};

void bf16_tile_instruction(const Bf16* a, int64_t rows, const Bf16* b, int64_t panels, int64_t depth, float* c,
                           int64_t ldc, bool add) {
  bf16_product<InstructionDot>(a, rows, b, panels, depth, c, ldc, add);
}

}  // namespace
}  // namespace saekernels
