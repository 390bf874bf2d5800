// The integer panel product: how it walks its operands, whatever multiplies them, and plain C++ that does.
#pragma once

namespace saekernels {
namespace {

constexpr int64_t kAheadBytes = 2048;  // of latents, while the first rows meet them: they come from memory

// What follows byte `at` of a panel, perhaps past the end of all. A panel that is read together with `others` more goes
// on behind those.
inline uintptr_t ahead(const void* latents, int64_t at, int64_t panel, int64_t others) {
  const int64_t wanted = at + kAheadBytes;
  return reinterpret_cast<uintptr_t>(latents) + static_cast<uintptr_t>(wanted + (wanted < panel ? 0 : others * panel));
}

inline void ask_for(uintptr_t line) { __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 3); }

// c[kRows][kPanels * 16] = rows from `a` on, which lie in one panel, times neighbouring panels of latents.
template <class Dot, int kRows, int kPanels, bool kAhead>
inline void integer_block(const char* a, const char* b, int64_t width, const float* row_scales, const int32_t* starts,
                          const float* scales, float* c, int64_t ldc) {
  const int64_t panel = width * kScreenPanel;
  typename Dot::Sums acc[kRows][kPanels];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) acc[r][p] = Dot::start(starts[r]);
  }
  for (int64_t block = 0; block < width; block += 64) {
    const char* rows = a + block * kScreenPanel;
    uintptr_t next[kPanels];
    for (int p = 0; p < kPanels; ++p) next[p] = ahead(b + p * panel, block * kScreenPanel, panel, kPanels - 1);
#pragma GCC unroll 4
    for (int64_t k = 0; k < 64; k += 4) {
      typename Dot::Latents latents[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        if (kAhead) ask_for(next[p] + static_cast<uintptr_t>(k * kScreenPanel));
        latents[p] = Dot::load(b + p * panel + (block + k) * kScreenPanel);
      }
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

// As many rows as are asked for, rounded up to kRows: for few, where reading latents is all the work.
template <class Dot, int kRows>
void few_integer_rows(const char* a, const char* b, int64_t panels, int64_t width, const float* row_scales,
                      const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  for (int64_t p = 0; p < panels; ++p) {
    integer_block<Dot, kRows, 1, true>(a, b + p * width * kScreenPanel, width, row_scales, starts,
                                       scales + p * kScreenPanel, c + p * kScreenPanel, ldc);
  }
}

template <class Dot>
void integer_product(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, const float* row_scales,
                     const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  if (rows == 1) return few_integer_rows<Dot, 1>(a, b, panels, width, row_scales, starts, scales, c, ldc);
  if (rows <= 4) return few_integer_rows<Dot, 4>(a, b, panels, width, row_scales, starts, scales, c, ldc);
  constexpr auto kFirst = integer_block<Dot, Dot::kRows, Dot::kPanels, true>;
  constexpr auto kOthers = integer_block<Dot, Dot::kRows, Dot::kPanels, false>;
  for (int64_t p = 0; p < panels; p += Dot::kPanels) {
    for (int64_t r = 0; r < rows; r += Dot::kRows) {
      const char* from = a + r / kScreenPanel * width * kScreenPanel + r % kScreenPanel * 64;
      const auto multiply = r == 0 ? kFirst : kOthers;
      multiply(from, b + p * width * kScreenPanel, width, row_scales + r, starts + r, scales + p * kScreenPanel,
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
