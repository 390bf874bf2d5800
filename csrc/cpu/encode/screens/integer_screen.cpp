#include "cpu/encode/screens/integer_screen.h"

namespace saekernels {
namespace {

struct Rounded {
  Quantised integers;
  float norm, error;  // from above
};

// `row` is zero-padded to a multiple of kDotLanes; `out` takes panel_width bytes.
Rounded quantise_row(const Level& simd, Screening kind, const float* row, int64_t depth, int zero, char* out) {
  const int64_t padded = round_up(depth, kDotLanes), width = panel_width(kind, depth);
  const int64_t filled = kind == Screening::kInt8 ? padded : 2 * padded;
  Rounded rounded{};
  rounded.norm = norm_above(simd.dot(row, row, padded), depth);
  std::memset(out + filled, 0, static_cast<size_t>(width - filled));
  if (!std::isfinite(rounded.norm)) {
    std::memset(out, 0, static_cast<size_t>(filled));
    rounded.error = rounded.norm;
    return rounded;
  }
  rounded.integers = simd.quantise(row, padded, rounded.norm, kind, zero, out);
  // Without fused multiply-adds, the errors themselves are off by the rounding of products as large as the row.
  rounded.error = norm_above(rounded.integers.squares, depth) * (1 + 0x1p-20f) + rounded.norm * 0x1p-22f;
  return rounded;
}

class IntegerScreen final : public Screen {
 public:
  IntegerScreen(const Level& simd, Screening kind, int64_t depth, const PreparedScreen* prepared, int64_t capacity,
                int64_t max_columns)
      : Screen(simd, depth, shape_for(panel_width(kind, depth), max_columns), capacity, prepared),
        kind_(kind),
        width_(panel_width(kind, depth)),
        rows_(round_up(capacity, 2 * kScreenPanel) * width_),
        scales_(round_up(capacity, 2 * kScreenPanel)),
        starts_(round_up(capacity, 2 * kScreenPanel)) {}

  // The products take up to two panels of rows at a time: all of them are written.
  void pack(const CentredRows& rows, int64_t count, int threads) override {
    parallel_for(round_up(count, 2 * kScreenPanel) / kScreenPanel, threads, [&](int64_t panel, int) {
      Buffer<char> integers(width_);
      for (int64_t r = 0; r < kScreenPanel; ++r) {
        const int64_t at = panel * kScreenPanel + r;
        Rounded rounded{};
        if (at < count) {
          rounded = quantise_row(simd_, kind_, rows.row(at), depth_, 0, integers.get());
          // The score is a sum in lanes; the screen's, turned into fp32, is rounded three times.
          reaches_[at] =
              RowReach::of(rounded.norm, rounded.error, static_cast<double>(ceil_div(depth_, kDotLanes) + 16));
        } else {
          std::memset(integers.get(), 0, static_cast<size_t>(width_));
        }
        scales_[at] = rounded.integers.scale;
        starts_[at] = kind_ == Screening::kInt8 ? -128 * rounded.integers.sum : 0;
        place_row(integers.get(), width_, r, rows_.get() + panel * kScreenPanel * width_);
      }
    });
  }

  void product(int64_t row, int64_t rows, const ScreenTile& tile) const override {
    const IntegerTile multiply = kind_ == Screening::kInt8 ? simd_.int8_tile : simd_.int16_tile;
    multiply(rows_.get() + row * width_, rows, static_cast<const char*>(tile.latents),
             round_up(tile.count, kMaxPanel) / kScreenPanel, width_, scales_.get() + row, starts_.get() + row,
             tile.scale.get(), tile.scores.get(), shape_.columns);
  }

  bool gated(int64_t rows) const override {
    constexpr int64_t kFew = 4;  // for which other instructions are faster
    return kind_ == Screening::kInt8 && simd_.int8_gated != nullptr && rows > kFew;
  }

  void gated_product(int64_t row, int64_t rows, bool magnitude, const ScreenTile& tile) const override {
    const Gate gate{tile.bias.get(), tile.limits.get(), magnitude, tile.marks.get()};
    simd_.int8_gated(rows_.get() + row * width_, rows, static_cast<const char*>(tile.latents),
                     round_up(tile.count, kMaxPanel) / kScreenPanel, width_, scales_.get() + row, starts_.get() + row,
                     tile.scale.get(), gate, tile.scores.get(), shape_.columns);
  }

 protected:
  static TileShape shape_for(int64_t width, int64_t max_columns) {
    const int64_t columns = width * kMaxTile <= kWeightTileBytes + (64 << 10) ? kMaxTile : tile_columns(width / 4);
    return {std::min(columns, max_columns), 4 * kMaxPanel};
  }

  int64_t tile_bytes() const override { return prepared_ != nullptr ? 0 : shape_.columns * width_; }

  void stage(ScreenTile* tile) const override {
    if (prepared_ != nullptr) return;
    tile->staged = Buffer<float>(round_up(depth_, kDotLanes));
    tile->rounded = Buffer<char>(kScreenPanel * width_);
  }

  const void* prepared_tile(int64_t first) const override { return prepared_->panels + first * width_; }

  bool scales() const override { return true; }

  void pack_latents(const Matrix& weight, ScreenTile* tile) const override {
    for (int64_t j = 0; j < round_up(tile->count, kMaxPanel); j += kScreenPanel) {
      quantise_latents(simd_, weight, kind_, tile->first + j, std::clamp<int64_t>(tile->count - j, 0, kScreenPanel),
                       tile->staged.get(), tile->rounded.get(), tile->norm.get() + j, tile->error.get() + j,
                       tile->scale.get() + j);
      simd_.interleave_latents(tile->rounded.get(), width_, tile->packed.get() + j * width_);
    }
    tile->latents = tile->packed.get();
  }

 private:
  Screening kind_;
  int64_t width_;
  Buffer<char> rows_;
  Buffer<float> scales_;
  Buffer<int32_t> starts_;
};

}  // namespace

std::unique_ptr<Screen> make_integer_screen(const Level& simd, Screening kind, int64_t depth,
                                            const PreparedScreen* prepared, int64_t capacity, int64_t max_columns) {
  return std::make_unique<IntegerScreen>(simd, kind, depth, prepared, capacity, max_columns);
}

void quantise_latents(const Level& simd, const Matrix& weight, Screening kind, int64_t first, int64_t count,
                      float* staged, char* out, float* norms, float* errors, float* scales) {
  const int64_t width = panel_width(kind, weight.cols);
  std::fill(staged + weight.cols, staged + round_up(weight.cols, kDotLanes), 0.0f);
  for (int64_t i = 0; i < kScreenPanel; ++i) {
    if (i >= count) {
      std::memset(out + i * width, 0, static_cast<size_t>(width));
      scales[i] = 0;
      continue;
    }
    simd.load_row(weight, first + i, 0, weight.cols, staged);
    const Rounded rounded =
        quantise_row(simd, kind, staged, weight.cols, kind == Screening::kInt8 ? 128 : 0, out + i * width);
    norms[i] = rounded.norm;
    errors[i] = rounded.error;
    scales[i] = rounded.integers.scale;
  }
}

}  // namespace saekernels
