#include "cpu/encode/screens/screen.h"

#include "cpu/encode/screens/integer_screen.h"

namespace saekernels {
namespace {

class Fp32Screen final : public Screen {
 public:
  Fp32Screen(const Level& simd, int64_t depth, const PreparedScreen* prepared, int64_t capacity, int64_t max_columns)
      : Screen(simd, depth, tile_shape(simd, std::min(tile_columns(depth), max_columns), depth), capacity, prepared),
        rows_(round_up(capacity, simd.mr) * depth_) {}

  void pack(const CentredRows& rows, int64_t count, int threads) override {
    const int64_t mr = simd_.mr;
    parallel_for(ceil_div(count, mr), threads, [&](int64_t panel, int) {
      float* out = rows_.get() + panel * mr * depth_;
      for (int64_t r = 0; r < std::min(mr, count - panel * mr); ++r) {
        const float* row = rows.row(panel * mr + r);
        for (int64_t k = 0; k < depth_; ++k) out[k * mr + r] = row[k];
        const float norm = norm_above(simd_.dot(row, row, rows.padded()), depth_);
        // The screen sums blocks of kDotBlock in order, and the score is a sum in lanes.
        const int64_t terms =
            std::min(depth_, kDotBlock) + ceil_div(depth_, kDotBlock) + ceil_div(depth_, kDotLanes) + 8;
        reaches_[panel * mr + r] = RowReach::of(norm, 0.0f, static_cast<double>(terms));
      }
    });
  }

  void product(int64_t row, int64_t rows, const ScreenTile& tile) const override {
    simd_.gemm_tile(rows_.get() + row * depth_, rows, static_cast<const float*>(tile.latents),
                    ceil_div(tile.count, simd_.nr), depth_, tile.scores.get(), shape_.columns, false);
  }

 protected:
  int64_t tile_bytes() const override { return shape_.columns * depth_ * 4; }
  void stage(ScreenTile*) const override {}
  const void* prepared_tile(int64_t) const override { return nullptr; }

  void pack_latents(const Matrix& weight, ScreenTile* tile) const override {
    float* out = reinterpret_cast<float*>(tile->packed.get());
    pack_tile(simd_, weight, tile->first, tile->count, out);
    tile->latents = out;
    if (prepared_ != nullptr) return;
    for (int64_t j = 0; j < tile->count; j += simd_.nr) {
      simd_.panel_squares(out + j * depth_, depth_, tile->norm.get() + j);
    }
    for (int64_t j = 0; j < tile->count; ++j) tile->norm[j] = norm_above(tile->norm[j], depth_);
  }

 private:
  Buffer<float> rows_;
};

class Bf16Screen final : public Screen {
 public:
  Bf16Screen(const Level& simd, int64_t depth, const PreparedScreen* prepared, int64_t capacity, int64_t max_columns)
      : Screen(simd, depth, shape_for(panel_width(Screening::kBf16, depth), max_columns), capacity, prepared),
        padded_(round_up(depth_, kScreenDepth)),
        rows_(round_up(capacity, 2 * kScreenPanel) * padded_) {}

  void pack(const CentredRows& rows, int64_t count, int threads) override {
    parallel_for(ceil_div(count, kScreenPanel), threads, [&](int64_t panel, int) {
      Buffer<Bf16> rounded(padded_);
      char* out = reinterpret_cast<char*>(rows_.get() + panel * kScreenPanel * padded_);
      for (int64_t r = 0; r < kScreenPanel; ++r) {
        const int64_t at = panel * kScreenPanel + r;
        if (at >= count) std::memset(rounded.get(), 0, static_cast<size_t>(padded_) * sizeof(Bf16));
        if (at < count) reaches_[at] = round_row(rows.row(at), rounded.get());
        place_row(reinterpret_cast<const char*>(rounded.get()), 2 * padded_, r, out);
      }
    });
    // The product takes two panels of rows at a time: the second may not exist, but is read.
    const int64_t used = round_up(count, kScreenPanel) * padded_, read = round_up(count, 2 * kScreenPanel) * padded_;
    std::memset(static_cast<void*>(rows_.get() + used), 0, static_cast<size_t>(read - used) * sizeof(Bf16));
  }

  void product(int64_t row, int64_t rows, const ScreenTile& tile) const override {
    simd_.bf16_tile(rows_.get() + row * padded_, rows, static_cast<const Bf16*>(tile.latents),
                    round_up(tile.count, kMaxPanel) / kScreenPanel, padded_, tile.scores.get(), shape_.columns, false);
  }

 protected:
  // All rows of a block stream past each tile, from the third cache where they are wide: so a tile is as wide as the
  // second cache allows, beside a group of rows.
  static TileShape shape_for(int64_t width, int64_t max_columns) {
    int64_t columns = kMaxTile / 2;
    while (columns > kMaxPanel && columns * width > second_cache_bytes() * 3 / 8) columns /= 2;
    const int64_t panels = std::clamp<int64_t>((512 << 10) / (kMaxPanel * width), 1, 4);
    return {std::min(columns, max_columns), panels * kMaxPanel};
  }

  int64_t tile_bytes() const override { return prepared_ != nullptr ? 0 : shape_.columns * padded_ * 2; }

  void stage(ScreenTile* tile) const override {
    if (prepared_ != nullptr) return;
    tile->staged = Buffer<float>(padded_);
    tile->rounded = Buffer<char>(kScreenPanel * padded_ * 2);
  }

  const void* prepared_tile(int64_t first) const override { return prepared_->panels + first * padded_ * 2; }

  void pack_latents(const Matrix& weight, ScreenTile* tile) const override {
    for (int64_t j = 0; j < round_up(tile->count, kMaxPanel); j += kScreenPanel) {
      round_latents(simd_, weight, tile->first + j, std::clamp<int64_t>(tile->count - j, 0, kScreenPanel), padded_,
                    tile->staged.get(), reinterpret_cast<Bf16*>(tile->rounded.get()), tile->norm.get() + j,
                    tile->error.get() + j);
      simd_.interleave_latents(tile->rounded.get(), 2 * padded_, tile->packed.get() + j * padded_ * 2);
    }
    tile->latents = tile->packed.get();
  }

 private:
  RowReach round_row(const float* row, Bf16* rounded) const {
    const float norm = norm_above(simd_.dot(row, row, padded_), depth_);
    const float error = norm_above(simd_.round_to_bf16(row, padded_, rounded), depth_);
    return RowReach::of(norm, error, static_cast<double>(depth_ + ceil_div(depth_, kDotLanes) + 8));
  }

  int64_t padded_;
  Buffer<Bf16> rows_;
};

// NaN counts as infinite.
void widen(float* widest, float value) {
  if (!(value <= *widest)) *widest = value == value ? value : std::numeric_limits<float>::infinity();
}

}  // namespace

void round_latents(const Level& simd, const Matrix& weight, int64_t first, int64_t count, int64_t padded, float* staged,
                   Bf16* rounded, float* norms, float* errors) {
  std::fill(staged + weight.cols, staged + padded, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    simd.load_row(weight, first + i, 0, weight.cols, staged);
    const float squares = simd.dot(staged, staged, padded);
    errors[i] = norm_above(simd.round_to_bf16(staged, padded, rounded + i * padded), weight.cols);
    norms[i] = norm_above(squares, weight.cols);
  }
  std::memset(static_cast<void*>(rounded + count * padded), 0,
              static_cast<size_t>((kScreenPanel - count) * padded) * sizeof(Bf16));
}

ScreenTile Screen::make_tile() const {
  ScreenTile tile;
  tile.packed = Buffer<char>(tile_bytes());
  tile.scores = Buffer<float>(round_up(shape_.group, 2 * kScreenPanel) * shape_.columns);
  for (Buffer<float>* part : {&tile.bias, &tile.norm, &tile.error, &tile.scale, &tile.extra, &tile.factor}) {
    *part = Buffer<float>(shape_.columns);
  }
  std::fill(tile.error.get(), tile.error.get() + shape_.columns, 0.0f);
  tile.hits = Buffer<uint16_t>(shape_.columns);
  if (gated(shape_.group)) {
    const int64_t rows = round_up(shape_.group, 2 * kScreenPanel);
    tile.limits = Buffer<float>(rows);
    tile.marks = Buffer<uint32_t>(rows * ceil_div(shape_.columns, 2 * kScreenPanel));
  }
  stage(&tile);
  return tile;
}

void Screen::load(const Encoder& encoder, int64_t first, int64_t count, ScreenTile* tile) const {
  tile->first = first;
  tile->count = count;
  load_tile(simd_, encoder.bias, first, count, shape_.columns, tile->bias.get());
  if (prepared_ != nullptr) {
    std::memcpy(tile->norm.get(), prepared_->norms + first, static_cast<size_t>(count) * sizeof(float));
    std::memcpy(tile->error.get(), prepared_->errors + first, static_cast<size_t>(count) * sizeof(float));
    if (prepared_->scales != nullptr) {
      // Of whole panels: the product scales what lies past count as well.
      const auto whole = static_cast<size_t>(round_up(count, kMaxPanel));
      std::memcpy(tile->scale.get(), prepared_->scales + first, whole * sizeof(float));
    }
    tile->latents = prepared_tile(first);
  }
  if (prepared_ == nullptr || tile->latents == nullptr) pack_latents(encoder.weight, tile);
  tile->scaled = encoder.scale.data != nullptr;
  if (tile->scaled) scale_tile(encoder.scale, tile);
  tile->widest = {};
  for (int64_t j = 0; j < count; ++j) {
    const LatentReach one = tile->reach_of(j);
    widen(&tile->widest.norm, one.norm);
    widen(&tile->widest.error, one.error);
    widen(&tile->widest.bias, one.bias);
    widen(&tile->widest.factor, one.factor);
    widen(&tile->widest.unscaled, one.unscaled);
  }
}

void Screen::scale_tile(const Matrix& scale, ScreenTile* tile) const {
  float* factor = tile->factor.get();
  load_tile(simd_, scale, tile->first, tile->count, shape_.columns, factor);
  for (int64_t j = 0; j < tile->count; ++j) tile->bias[j] *= factor[j];
  tile->multiply = scales() ? nullptr : factor;
  for (int64_t j = 0; scales() && j < tile->count; ++j) tile->scale[j] *= factor[j];
}

std::unique_ptr<Screen> make_screen(const Encoder& encoder, Screening kind, int64_t capacity, int64_t max_columns) {
  const Level& simd = level();
  const PreparedScreen* prepared = encoder.prepared != nullptr ? encoder.prepared->of(kind) : nullptr;
  const int64_t depth = encoder.x.cols;
  if (is_integer(kind)) return make_integer_screen(simd, kind, depth, prepared, capacity, max_columns);
  if (kind == Screening::kBf16) return std::make_unique<Bf16Screen>(simd, depth, prepared, capacity, max_columns);
  return std::make_unique<Fp32Screen>(simd, depth, prepared, capacity, max_columns);
}

}  // namespace saekernels
