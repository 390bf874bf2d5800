// The integer panel product: how it walks its operands, whatever multiplies them, and plain C++ that does.
#pragma once

namespace saekernels {
namespace {

// c[kRows][kPanels * 16] = rows from `a` on, which lie in one panel, times neighbouring panels of latents.
template <class Dot, int kRows, int kPanels>
inline void integer_block(const char* a, const char* b, int64_t width, const float* row_scales, const int32_t* starts,
                          const float* scales, float* c, int64_t ldc) {
  typename Dot::Sums acc[kRows][kPanels];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) acc[r][p] = Dot::start(starts[r]);
  }
  for (int64_t block = 0; block < width; block += 64) {
    const char* rows = a + block * kScreenPanel;
#pragma GCC unroll 4
    for (int64_t k = 0; k < 64; k += 4) {
      typename Dot::Latents latents[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) latents[p] = Dot::load(b + (p * width + block + k) * kScreenPanel);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename Dot::Word x = Dot::broadcast(rows + r * 64 + k);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) Dot::add(&acc[r][p], latents[p], x);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      Dot::store(acc[r][p], row_scales[r], scales + p * kScreenPanel, c + r * ldc + p * kScreenPanel);
    }
  }
}

template <class Dot>
void integer_product(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, const float* row_scales,
                     const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  for (int64_t p = 0; p < panels; p += Dot::kPanels) {
    for (int64_t r = 0; r < rows; r += Dot::kRows) {
      const char* from = a + r / kScreenPanel * width * kScreenPanel + r % kScreenPanel * 64;
      integer_block<Dot, Dot::kRows, Dot::kPanels>(from, b + p * width * kScreenPanel, width, row_scales + r,
                                                   starts + r, scales + p * kScreenPanel,
                                                   c + r * ldc + p * kScreenPanel, ldc);
    }
  }
}

// T: int8_t, whose latents are stored 128 too large, or int16_t. No partial sum of either leaves 32 bits.
template <class T>
struct PlainDot {
  static constexpr int kRows = 1, kPanels = 1, kTerms = 4 / sizeof(T);
  struct Sums {
    int32_t v[kScreenPanel];
  };
  using Latents = const char*;
  struct Word {
    T x[kTerms];
  };
  static Sums start(int32_t) { return {}; }
  static Latents load(const char* p) { return p; }
  static Word broadcast(const char* p) {
    Word word;
    memcpy(&word, p, sizeof word);
    return word;
  }
  static int32_t latent(const char* p) {
    if constexpr (sizeof(T) == 1) return static_cast<int32_t>(static_cast<uint8_t>(*p)) - 128;
    int16_t value = 0;
    memcpy(&value, p, sizeof(T));
    return value;
  }
  static void add(Sums* sums, Latents latents, const Word& word) {
    for (int j = 0; j < kScreenPanel; ++j) {
      for (int t = 0; t < kTerms; ++t) {
        sums->v[j] += latent(latents + 4 * j + t * static_cast<int>(sizeof(T))) * word.x[t];
      }
    }
  }
  static void store(const Sums& sums, float row_scale, const float* scales, float* c) {
    for (int j = 0; j < kScreenPanel; ++j) c[j] = static_cast<float>(sums.v[j]) * row_scale * scales[j];
  }
};

}  // namespace
}  // namespace saekernels
