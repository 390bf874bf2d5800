// Screening in bf16: rounding and packing of both sides, and a product of packed panels.
//
// Rows come in panels of 16, depth in blocks of 32 (zeros pad both): [panel][block][16 rows][32]. Latents come in
// panels of 16, with two depths side by side: [panel][pair of depths][16 latents][2]. AMX reads both as tiles, the dot
// instructions of AVX-512 read a vector of latents and a broadcast pair of a row, and so does the loop below.
#pragma once

namespace saekernels {
namespace {

// Rounds n values (a multiple of kDotLanes) to bf16; returns the sum of the squared errors.
float round_to_bf16(const float* in, int64_t n, Bf16* out) {
  constexpr int kVecs = kDotLanes / Vec::kWidth;
  Vec sums[kVecs];
  for (int i = 0; i < kVecs; ++i) sums[i] = Vec::zero();
  for (int64_t j = 0; j < n; j += kDotLanes) {
    for (int i = 0; i < kVecs; ++i) {
      const int64_t at = j + i * Vec::kWidth;
      const Vec value = Vec::load(in + at);
      value.store(out + at);
      const Vec error = value - Vec::load(out + at);
      sums[i] = fma(error, error, sums[i]);
    }
  }
  return fold_lanes(sums);
}

// rows [16][width bytes] to [width / 4][16][4 bytes]: a transposition of words, each a pair of bf16 or of int16, or
// four int8.
void interleave_latents(const void* rows, int64_t width, void* out) {
  const float* words = static_cast<const float*>(rows);
  float* to = static_cast<float*>(out);
  const int64_t stride = width / 4;
  for (int64_t k = 0; k < stride; k += 8) {
    transpose8(words + k, stride, to + k * kScreenPanel, kScreenPanel);
    transpose8(words + 8 * stride + k, stride, to + k * kScreenPanel + 8, kScreenPanel);
  }
}

// How the panel product of this level takes its operands: products of bf16 are exact in fp32.
struct PairDot {
  static constexpr int kVecs = kScreenPanel / Vec::kWidth;  // of a pair of depths of a panel
  static constexpr int kRows = kVecs > 2 ? 2 : 4;
  struct Pairs {
    Vec even, odd;
  };
  static Pairs load(const Bf16* p) {
    Pairs pairs;
    load_pairs(p, &pairs.even, &pairs.odd);
    return pairs;
  }
  static Pairs broadcast(const Bf16* p) { return {Vec::broadcast(to_float(p[0])), Vec::broadcast(to_float(p[1]))}; }
  static Vec add(Vec sum, Pairs a, Pairs b) { return fma(a.odd, b.odd, fma(a.even, b.even, sum)); }
};

// c[kRows][16] = rows from r on, times one panel of latents.
template <class Dot, int kRows>
inline void bf16_block(const Bf16* a, const Bf16* b, int64_t depth, float* c, int64_t ldc, bool add) {
  Vec acc[kRows][Dot::kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < Dot::kVecs; ++j) acc[r][j] = add ? Vec::load(c + r * ldc + j * Vec::kWidth) : Vec::zero();
  }
  for (int64_t block = 0; block < depth; block += kScreenDepth) {
    const Bf16* rows = a + block * kScreenPanel;
    for (int64_t k = 0; k < kScreenDepth; k += 2) {
      typename Dot::Pairs latents[Dot::kVecs];
#pragma GCC unroll 4
      for (int j = 0; j < Dot::kVecs; ++j) {
        latents[j] = Dot::load(b + (block + k) * kScreenPanel + 2 * j * Vec::kWidth);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename Dot::Pairs x = Dot::broadcast(rows + r * kScreenDepth + k);
#pragma GCC unroll 4
        for (int j = 0; j < Dot::kVecs; ++j) acc[r][j] = Dot::add(acc[r][j], x, latents[j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < Dot::kVecs; ++j) acc[r][j].store(c + r * ldc + j * Vec::kWidth);
  }
}

// c[rows][panels * 16] (+)= rows times panels; rows are rounded up to a multiple of kScreenPanel.
template <class Dot>
inline void bf16_product(const Bf16* a, int64_t rows, const Bf16* b, int64_t panels, int64_t depth, float* c,
                         int64_t ldc, bool add) {
  for (int64_t p = 0; p < panels; ++p) {
    const Bf16* panel = b + p * depth * kScreenPanel;
    for (int64_t r = 0; r < rows; r += Dot::kRows) {
      const Bf16* from = a + r / kScreenPanel * depth * kScreenPanel + r % kScreenPanel * kScreenDepth;
      bf16_block<Dot, Dot::kRows>(from, panel, depth, c + r * ldc + p * kScreenPanel, ldc, add);
    }
  }
}

[[maybe_unused]] void bf16_tile(const Bf16* a, int64_t rows, const Bf16* b, int64_t panels, int64_t depth, float* c,
                                int64_t ldc, bool add) {
  bf16_product<PairDot>(a, rows, b, panels, depth, c, ldc, add);
}

}  // namespace
}  // namespace saekernels
