// The bf16 panel product on AMX tiles. The intrinsics are the whole interface to the machine, so a test can bring its
// own.
//
// Two by two tiles of 16 x 16 sums take two tiles of rows and two of latents per step. A slice of kAmxDepth of two
// latent panels (32 KiB) stays in the first cache while the row panels of the group stream past it; sums wait in c
// between slices.
#pragma once

namespace saekernels {
namespace {

constexpr int64_t kAmxDepth = 512;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Asks for what follows 1 KiB at byte `at` of each of two latent panels of `panel` bytes. For the first rows that meet
// them: they come from memory.
inline void amx_ask_ahead(const char* latents, int64_t at, int64_t panel) {
  for (int64_t p = 0; p < 2; ++p) {
    const uintptr_t next = ahead(latents + p * panel, at, panel, 1);
    for (uintptr_t line = 0; line < 1024; line += 64) ask_for(next + line);
  }
}

// c[32][32] (+)= 32 rows times 32 latents over `depth` terms; panels lie `panel` elements apart, and `b` lies `at`
// bytes into one.
inline void amx_block(const Bf16* a, const Bf16* b, int64_t panel, int64_t at, int64_t depth, float* c, int64_t ldc,
                      bool ask, bool add) {
  constexpr int64_t kBytes = sizeof(Bf16);
  const char* begin = reinterpret_cast<const char*>(b) - at;
  const int64_t c_stride = ldc * static_cast<int64_t>(sizeof(float));
  if (!add) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, c_stride);
    _tile_loadd(1, c + 16, c_stride);
    _tile_loadd(2, c + 16 * ldc, c_stride);
    _tile_loadd(3, c + 16 * ldc + 16, c_stride);
  }
  for (int64_t k = 0; k < depth; k += kScreenDepth) {
    const Bf16* rows = a + k * kScreenPanel;
    const Bf16* latents = b + k * kScreenPanel;
    if (ask) amx_ask_ahead(begin, at + k * kScreenPanel * kBytes, panel * kBytes);
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, latents, 64);
    _tile_loadd(7, latents + panel, 64);
    _tile_loadd(5, rows + panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_stride);
  _tile_stored(1, c + 16, c_stride);
  _tile_stored(2, c + 16 * ldc, c_stride);
  _tile_stored(3, c + 16 * ldc + 16, c_stride);
}

// Rows and panels are rounded up to two panels; operands and c have room for that.
void amx_tile(const Bf16* a, int64_t rows, const Bf16* b, int64_t panels, int64_t depth, float* c, int64_t ldc,
              bool add) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t panel = depth * kScreenPanel;
  for (int64_t p = 0; p < panels; p += 2) {
    for (int64_t k = 0; k < depth; k += kAmxDepth) {
      const int64_t slice = depth - k < kAmxDepth ? depth - k : kAmxDepth;
      for (int64_t r = 0; r < rows; r += 2 * kScreenPanel) {
        amx_block(a + r * depth + k * kScreenPanel, b + p * panel + k * kScreenPanel, panel,
                  k * kScreenPanel * static_cast<int64_t>(sizeof(Bf16)), slice, c + r * ldc + p * kScreenPanel, ldc,
                  r == 0, k > 0 || add);
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace saekernels
