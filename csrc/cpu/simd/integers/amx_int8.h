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

// 32 rows times 32 latents from byte `at` of their panels on; sums wait in c, as integers, for the last slice.
inline void amx_int8_block(const char* a, const char* b, int64_t panel, int64_t at, int64_t width,
                           const float* row_scales, const int32_t* starts, const float* scales, float* c, int64_t ldc,
                           bool ask) {
  constexpr int kSide = 2 * kScreenPanel;
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
  alignas(64) int32_t sums[kSide][kSide];
  amx_store_sums(reinterpret_cast<char*>(sums), sizeof sums[0], kScreenPanel * static_cast<int64_t>(sizeof sums[0]));
  for (int r = 0; r < kSide; ++r) {
    for (int j = 0; j < kSide; ++j) {
      const auto sum = static_cast<int32_t>(static_cast<uint32_t>(sums[r][j]) + static_cast<uint32_t>(starts[r]));
      c[r * ldc + j] = static_cast<float>(sum) * row_scales[r] * scales[j];
    }
  }
}

// Rows and panels are rounded up to two panels; operands, scales, starts and c have room for that.
void amx_int8_tile(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, const float* row_scales,
                   const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t panel = width * kScreenPanel;
  for (int64_t p = 0; p < panels; p += 2) {
    for (int64_t k = 0; k < width; k += kAmxWidth) {
      const int64_t slice = width - k < kAmxWidth ? width - k : kAmxWidth;
      for (int64_t r = 0; r < rows; r += 2 * kScreenPanel) {
        amx_int8_block(a + r * width + k * kScreenPanel, b + p * panel + k * kScreenPanel, panel, k * kScreenPanel,
                       slice, row_scales + r, starts + r, scales + p * kScreenPanel, c + r * ldc + p * kScreenPanel,
                       ldc, r == 0);
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace saekernels
