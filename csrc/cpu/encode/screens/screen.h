// A screen computes approximate scores of a tile of latents with packed rows, and says how far off they can be.
//
// Rows are packed once per row block. A worker loads a tile of latents into a buffer that stays in L2 and multiplies a
// group of rows with it at a time, so that their scores are still near when they are filtered. Nothing of size T x F.
#pragma once

#include <cstring>
#include <memory>

#include "cpu/encode/screens/bounds.h"
#include "cpu/kernels.h"
#include "cpu/encode/screens/prepared.h"
#include "cpu/rows.h"
#include "cpu/encode/score_tiles.h"

namespace saekernels {

// Up to so many rows, packing costs more than it saves: encoders then score them exactly at once.
constexpr int64_t kDirectRows = 4;

// Scratch of one worker, and the tile that it holds now.
struct ScreenTile {
  Buffer<char> packed;   // latents in the screen's layout, unless they come prepared
  Buffer<float> staged;  // a latent in fp32
  Buffer<char> rounded;  // 16 latents as the screen takes them
  Buffer<float> scores;  // [group][columns]
  // [columns], zero past count. factor: the latents' scales, where scores are compared times them; `bias` is too then.
  Buffer<float> bias, norm, error, scale, extra, factor;
  Buffer<uint16_t> hits;
  Buffer<float> limits;    // [group], rounded up to two panels
  Buffer<uint32_t> marks;  // [the same][columns / 32]
  const void* latents = nullptr;
  int64_t first = 0, count = 0;
  LatentReach widest;

  // What is left to multiply a product by; null where it needs nothing.
  const float* multiply = nullptr;
  bool scaled = false;

  LatentReach reach_of(int64_t j) const {
    const LatentReach plain{norm[j] + error[j], error[j], std::fabs(bias[j])};
    return scaled ? plain.times(factor[j]) : plain;
  }
};

class Screen {
 public:
  virtual ~Screen() = default;

  int64_t columns() const { return shape_.columns; }
  int64_t group() const { return shape_.group; }

  ScreenTile make_tile() const;
  // Rounds and packs rows [0, count); reach(r) is valid afterwards.
  virtual void pack(const CentredRows& rows, int64_t count, int threads) = 0;
  // Latents [first, first + count) with their bias and reaches; those of scaled scores where the encoder has a scale.
  void load(const Encoder& encoder, int64_t first, int64_t count, ScreenTile* tile) const;
  // Scores, without bias and before tile.multiply, of rows [row, row + rows); row is a multiple of group().
  virtual void product(int64_t row, int64_t rows, const ScreenTile& tile) const = 0;
  // The same of scores with bias that pass tile.limits, see Gate; only where gated(rows).
  virtual bool gated(int64_t) const { return false; }
  virtual void gated_product(int64_t, int64_t, bool, const ScreenTile&) const {}

  const RowReach& row_reach(int64_t r) const { return reaches_[r]; }

 protected:
  Screen(const Level& simd, int64_t depth, const TileShape& shape, int64_t capacity, const PreparedScreen* prepared)
      : simd_(simd), depth_(depth), shape_(shape), prepared_(prepared), reaches_(capacity) {}

  virtual int64_t tile_bytes() const = 0;
  virtual void stage(ScreenTile* tile) const = 0;
  virtual void pack_latents(const Matrix& weight, ScreenTile* tile) const = 0;
  virtual const void* prepared_tile(int64_t first) const = 0;
  // Whether a product is multiplied by tile.scale anyway.
  virtual bool scales() const { return false; }
  void scale_tile(const Matrix& scale, ScreenTile* tile) const;

  const Level& simd_;
  int64_t depth_;
  TileShape shape_;
  const PreparedScreen* prepared_;
  Buffer<RowReach> reaches_;
};

// A screen for row blocks of at most `capacity` rows. What was prepared for another kind of screen is not used.
std::unique_ptr<Screen> make_screen(const Encoder& encoder, Screening kind, int64_t capacity, int64_t max_columns);

// Bytes of a row in panels, none for fp32.
inline int64_t panel_width(Screening kind, int64_t depth) {
  if (kind == Screening::kFp32) return 0;
  return round_up(depth * (kind == Screening::kInt8 ? 1 : 2), 64);
}

// Rows of `width` bytes as panels: row `r` of a panel at `out`.
inline void place_row(const char* row, int64_t width, int64_t r, char* out) {
  for (int64_t k = 0; k < width; k += 64) std::memcpy(out + (k / 64 * kScreenPanel + r) * 64, row + k, 64);
}

// Latents [first, first + count), count <= kScreenPanel, rounded to bf16 [kScreenPanel][padded] with zeros behind them;
// norms and errors from above. `staged` is scratch [padded].
void round_latents(const Level& simd, const Matrix& weight, int64_t first, int64_t count, int64_t padded, float* staged,
                   Bf16* rounded, float* norms, float* errors);

}  // namespace saekernels
