// The int8 panel product on AMX tiles, which has the layouts of the bf16 one in bytes. Rows are signed, latents
// unsigned and 128 too large; what corrects that is added as sums turn into scores.
#pragma once

namespace saekernels {
namespace {

constexpr int64_t kAmxWidth = 2 * kAmxDepth;  // bytes of a slice

inline void amx_int8_slice(const char* a, const char* b, int64_t panel, int64_t at, int64_t width, bool ask) {
  for (int64_t k = 0; k < width; k += 64) {
    const char* rows = a + k * kScreenPanel;
    const char* latents = b + k * kScreenPanel;
    if (ask) amx_ask_ahead(b - at, at + k * kScreenPanel, panel);
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, latents, 64);
    _tile_loadd(7, latents + panel, 64);
    _tile_loadd(5, rows + panel, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
}

inline void amx_load_sums(const char* sums, int64_t stride, int64_t down) {
  _tile_loadd(0, sums, stride);
  _tile_loadd(1, sums + 64, stride);
  _tile_loadd(2, sums + down, stride);
  _tile_loadd(3, sums + down + 64, stride);
}

inline void amx_store_sums(char* sums, int64_t stride, int64_t down) {
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + 64, stride);
  _tile_stored(2, sums + down, stride);
  _tile_stored(3, sums + down + 64, stride);
}

constexpr int kAmxSide = 2 * kScreenPanel;

// 32 rows times 32 latents from byte `at` of their panels on; sums wait in c, as integers, until the last slice, when
// `finish` takes them.
template <class Finish>
inline void amx_int8_block(const char* a, const char* b, int64_t panel, int64_t at, int64_t width, float* c,
                           int64_t ldc, bool ask, const Finish& finish) {
  const int64_t stride = ldc * static_cast<int64_t>(sizeof(float));
  char* waiting = reinterpret_cast<char*>(c);
  if (at == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    amx_load_sums(waiting, stride, kScreenPanel * stride);
  }
  amx_int8_slice(a, b, panel, at, width, ask);
  if (at + width * kScreenPanel < panel) return amx_store_sums(waiting, stride, kScreenPanel * stride);
  alignas(64) int32_t sums[kAmxSide][kAmxSide];
  amx_store_sums(reinterpret_cast<char*>(sums), sizeof sums[0], kScreenPanel * static_cast<int64_t>(sizeof sums[0]));
  finish(sums);
}

// finish(r, p, sums) gets the sums of 32 rows from r on with the latents of panels p and p + 1.
template <class Finish>
inline void amx_int8_blocks(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, float* c,
                            int64_t ldc, const Finish& finish) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t panel = width * kScreenPanel;
  for (int64_t p = 0; p < panels; p += 2) {
    for (int64_t k = 0; k < width; k += kAmxWidth) {
      const int64_t slice = width - k < kAmxWidth ? width - k : kAmxWidth;
      for (int64_t r = 0; r < rows; r += kAmxSide) {
        amx_int8_block(a + r * width + k * kScreenPanel, b + p * panel + k * kScreenPanel, panel, k * kScreenPanel,
                       slice, c + r * ldc + p * kScreenPanel, ldc, r == 0,
                       [&](const int32_t (*sums)[kAmxSide]) { finish(r, p, sums); });
      }
    }
  }
  _tile_release();
}

inline float amx_score(int32_t sum, int32_t start, float row_scale, float scale) {
  const uint32_t whole = static_cast<uint32_t>(sum) + static_cast<uint32_t>(start);
  return static_cast<float>(static_cast<int32_t>(whole)) * row_scale * scale;
}

// Rows and panels are rounded up to two panels; operands, scales, starts and c have room for that.
void amx_int8_tile(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, const float* row_scales,
                   const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  amx_int8_blocks(a, rows, b, panels, width, c, ldc, [=](int64_t first, int64_t p, const int32_t (*sums)[kAmxSide]) {
    const float* of_latents = scales + p * kScreenPanel;
    for (int r = 0; r < kAmxSide; ++r) {
      float* out = c + (first + r) * ldc + p * kScreenPanel;
      for (int j = 0; j < kAmxSide; ++j) {
        out[j] = amx_score(sums[r][j], starts[first + r], row_scales[first + r], of_latents[j]);
      }
    }
  });
}

inline unsigned amx_passing(const float* scores, float limit, bool magnitude) {
  const Vec most = Vec::broadcast(limit);
  unsigned mask = 0;
#pragma GCC unroll 4
  for (int j = 0; j < kAmxSide; j += Vec::kWidth) {
    const Vec score = Vec::load(scores + j);
    mask |= mask_not_le(magnitude ? abs(score) : score, most) << j;
  }
  return mask;
}

void amx_int8_gated(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, const float* row_scales,
                    const int32_t* starts, const float* scales, const Gate& gate, float* c, int64_t ldc) {
  const int64_t words = panels / 2;
  amx_int8_blocks(a, rows, b, panels, width, c, ldc, [=](int64_t first, int64_t p, const int32_t (*sums)[kAmxSide]) {
    const float *of_latents = scales + p * kScreenPanel, *biases = gate.bias + p * kScreenPanel;
    for (int r = 0; r < kAmxSide; ++r) {
      const int64_t row = first + r;
      alignas(64) float scores[kAmxSide];
      for (int j = 0; j < kAmxSide; ++j) {
        scores[j] = amx_score(sums[r][j], starts[row], row_scales[row], of_latents[j]) + biases[j];
      }
      const unsigned mask = amx_passing(scores, gate.limits[row], gate.magnitude);
      gate.marks[row * words + p / 2] = mask;
      if (mask != 0) memcpy(c + row * ldc + p * kScreenPanel, scores, sizeof scores);
    }
  });
}

}  // namespace
}  // namespace saekernels
