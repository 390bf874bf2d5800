// Threshold encoding in CSR. A screen lists the latents that may reach their thresholds; their scores are then computed
// exactly, latent by latent while the tile is near, and decide. For few rows every score is computed exactly at once,
// unless latents come packed.
//
// The number of survivors is known only afterwards, so each task keeps its own list; a table of counts per (task, row)
// then gives every entry its place, without sorting and whatever the threads did.
#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/encode/rescore.h"
#include "cpu/encode/screens/screen.h"
#include "cpu/stats.h"

namespace saekernels {
namespace {

constexpr int64_t kCountBytes = 8 << 20;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Which NaN a sum comes to depends on the order of its operands, and that on the other rows.
float canonical(float score) { return score == score ? score : kNan; }

struct Hit {
  float value;
  int32_t index;
};

class ThresholdEncoder {
 public:
  ThresholdEncoder(const Encoder& encoder, const Matrix& threshold, int threads)
      : simd_(level()),
        encoder_(encoder),
        threshold_(threshold),
        latents_(encoder.weight.rows),
        workers_(gemm_workers(encoder.x.rows, latents_, encoder.x.cols, threads)),
        columns_(tile_columns(encoder.x.cols)),
        block_(block_rows(encoder.x.rows, encoder.x.cols, ceil_div(latents_, columns_) * 4, kCountBytes)),
        rows_(simd_, block_, encoder.x.cols),
        kind_(screens_for({encoder.x.rows, latents_, encoder.x.cols, 0, encoder.prepared != nullptr})[0]),
        screen_(make_screen(encoder, kind_, block_, columns_)),
        tiles_(ceil_div(latents_, screen_->columns())),
        counts_(tiles_ * block_),
        pre_bias_(load_vector(simd_, encoder.pre_bias)) {
    for (int w = 0; w < workers_; ++w) {
      scratch_.push_back(screen_->make_tile());
      rescorers_.emplace_back(encoder.weight, rows_.padded(), screen_->columns());
    }
  }

  void run(ThresholdCodes* codes) {
    const bool packed = kind_ != Screening::kFp32 && encoder_.prepared != nullptr;
    const bool few = encoder_.x.rows <= kDirectRows && !packed;
    codes->offsets.assign(static_cast<size_t>(encoder_.x.rows) + 1, 0);
    for (int64_t first = 0; first < encoder_.x.rows; first += block_) {
      const int64_t rows = std::min(block_, encoder_.x.rows - first);
      rows_.load(encoder_.x, pre_bias_.get(), first, rows, workers_);
      if (!few) screen_->pack(rows_, rows, workers_);
      hits_.assign(static_cast<size_t>(tiles_), {});
      parallel_for(tiles_, workers_,
                   [&](int64_t tile, int worker) { few ? score(tile, worker, rows) : collect(tile, worker, rows); });
      gather(first, rows, codes);
      count(few ? stats().direct_rows : stats().screened_rows, rows);
      if (!few) count(stats().rows_by(kind_), rows);
    }
  }

 private:
  void collect(int64_t index, int worker, int64_t rows) {
    ScreenTile& tile = scratch_[static_cast<size_t>(worker)];
    const int64_t columns = screen_->columns(), first = index * columns, count = std::min(columns, latents_ - first);
    screen_->load(encoder_, first, count, &tile);
    load_threshold(first, count, tile.extra.get());
    Pairs pairs;
    pairs.offsets.assign(1, 0);
    for (int64_t row = 0; row < rows; row += screen_->group()) {
      const int64_t group = std::min(screen_->group(), rows - row);
      screen_->product(row, group, tile);
      for (int64_t r = 0; r < group; ++r) {
        const float widest = reach(screen_->row_reach(row + r), tile.widest, encoder_.x.cols);
        // NaN lets everything pass: without a bound, the exact scores decide.
        const float slack = widest < std::numeric_limits<float>::infinity() ? widest : kNan;
        const int n = simd_.filter_each(tile.scores.get() + r * columns, tile.multiply, tile.bias.get(),
                                        tile.extra.get(), slack, static_cast<int>(count), tile.hits.get());
        pairs.latents.insert(pairs.latents.end(), tile.hits.get(), tile.hits.get() + n);
        pairs.offsets.push_back(static_cast<int64_t>(pairs.latents.size()));
      }
    }
    rescore_tile(encoder_, rows_, first, count, rescorers_[static_cast<size_t>(worker)], &pairs);
    keep(index, rows, tile, pairs);
  }

  // The exact scores above their thresholds, in the order of rows and latents.
  void keep(int64_t index, int64_t rows, const ScreenTile& tile, const Pairs& pairs) {
    const int64_t first = index * screen_->columns();
    std::vector<Hit>& list = hits_[static_cast<size_t>(index)];
    for (int64_t row = 0; row < rows; ++row) {
      const size_t before = list.size();
      const auto end = static_cast<size_t>(pairs.offsets[static_cast<size_t>(row) + 1]);
      for (auto p = static_cast<size_t>(pairs.offsets[static_cast<size_t>(row)]); p < end; ++p) {
        const int32_t j = pairs.latents[p];
        const float compared = tile.scaled ? pairs.scores[p] * tile.factor[j] : pairs.scores[p];
        if (compared <= tile.extra[j]) continue;  // NaN stays
        list.push_back({canonical(pairs.scores[p]), static_cast<int32_t>(first + j)});
      }
      counts_[index * block_ + row] = static_cast<int32_t>(list.size() - before);
    }
  }

  void score(int64_t index, int worker, int64_t rows) {
    ScreenTile& tile = scratch_[static_cast<size_t>(worker)];
    const int64_t columns = screen_->columns(), first = index * columns, count = std::min(columns, latents_ - first);
    const Matrix latents = rescorers_[static_cast<size_t>(worker)].tile.load(simd_, encoder_.weight, first, count);
    load_tile(simd_, encoder_.bias, first, count, columns, tile.bias.get());
    load_threshold(first, count, tile.extra.get());
    const bool scaled = encoder_.scale.data != nullptr;
    if (scaled) load_tile(simd_, encoder_.scale, first, count, columns, tile.factor.get());
    std::vector<Hit>& list = hits_[static_cast<size_t>(index)];
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t place = row % screen_->group();
      if (place == 0) {
        const int64_t together = std::min(screen_->group(), rows - row);
        simd_.dot_rows(rows_.row(row), rows_.padded(), together, latents, 0, count, tile.scores.get(), columns);
      }
      float* scores = tile.scores.get() + place * columns;
      const int n = scaled ? list_scaled(scores, count, &tile)
                           : simd_.filter_each(scores, nullptr, tile.bias.get(), tile.extra.get(), 0.0f,
                                               static_cast<int>(count), tile.hits.get());
      for (int h = 0; h < n; ++h) {
        const int64_t j = tile.hits[h];
        list.push_back({canonical(scores[j]), static_cast<int32_t>(first + j)});
      }
      counts_[index * block_ + row] = n;
    }
  }

  // Finishes exact scores in place and lists those that are above their threshold when they are scaled.
  static int list_scaled(float* scores, int64_t count, ScreenTile* tile) {
    int n = 0;
    for (int64_t j = 0; j < count; ++j) {
      scores[j] += tile->bias[j];
      if (!(scores[j] * tile->factor[j] <= tile->extra[j])) tile->hits[n++] = static_cast<uint16_t>(j);
    }
    return n;
  }

  // Nothing is above NaN, as above infinity.
  void load_threshold(int64_t first, int64_t count, float* out) const {
    if (threshold_.cols > 1) {
      load_tile(simd_, threshold_, first, count, screen_->columns(), out);
    } else {
      simd_.load_row(threshold_, 0, 0, 1, out);
      std::fill(out + 1, out + screen_->columns(), out[0]);
    }
    std::replace_if(
        out, out + count, [](float threshold) { return threshold != threshold; },
        std::numeric_limits<float>::infinity());
  }

  // Turns counts into places inside the block, row by row and tile by tile, and moves the lists there.
  void gather(int64_t first, int64_t rows, ThresholdCodes* codes) {
    std::vector<int64_t> totals(static_cast<size_t>(rows), 0);
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      for (int64_t row = 0; row < rows; ++row) totals[static_cast<size_t>(row)] += counts_[tile * block_ + row];
    }
    int64_t* offsets = codes->offsets.data() + first;
    for (int64_t row = 0; row < rows; ++row) offsets[row + 1] = offsets[row] + totals[static_cast<size_t>(row)];
    const int64_t base = offsets[0];
    const int64_t count = offsets[rows] - base;
    ThresholdCodes::Block block{Buffer<float>(count), Buffer<int32_t>(count), count};
    // Counts become starts relative to the row, which fit their type: a row has at most F entries.
    std::fill(totals.begin(), totals.end(), 0);
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      for (int64_t row = 0; row < rows; ++row) {
        int32_t& cell = counts_[tile * block_ + row];
        const int32_t n = cell;
        cell = static_cast<int32_t>(totals[static_cast<size_t>(row)]);
        totals[static_cast<size_t>(row)] += n;
      }
    }
    parallel_for(tiles_, workers_for(static_cast<double>(count), 1e5, workers_), [&](int64_t tile, int) {
      std::vector<Hit>& list = hits_[static_cast<size_t>(tile)];
      const Hit* hit = list.data();
      for (int64_t row = 0; row < rows; ++row) {
        const bool last = tile + 1 == tiles_;
        const int64_t begin = counts_[tile * block_ + row];
        const int64_t end = last ? totals[static_cast<size_t>(row)] : counts_[(tile + 1) * block_ + row];
        int64_t at = offsets[row] - base + begin;
        for (int64_t i = begin; i < end; ++i, ++at, ++hit) {
          block.values[at] = hit->value;
          block.indices[at] = hit->index;
        }
      }
      std::vector<Hit>().swap(list);
    });
    if (count > 0) codes->blocks.push_back(std::move(block));
  }

  const Level& simd_;
  const Encoder& encoder_;
  const Matrix& threshold_;
  int64_t latents_;
  int workers_;
  int64_t columns_, block_;
  CentredRows rows_;
  Screening kind_;
  std::unique_ptr<Screen> screen_;
  int64_t tiles_;
  Buffer<int32_t> counts_;
  Buffer<float> pre_bias_;
  std::vector<ScreenTile> scratch_;
  std::vector<RescoreScratch> rescorers_;
  std::vector<std::vector<Hit>> hits_;
};

}  // namespace

std::unique_ptr<ThresholdCodes> encode_threshold(const Encoder& encoder, const Matrix& threshold, int threads) {
  auto codes = std::make_unique<ThresholdCodes>();
  codes->offsets.assign(1, 0);
  if (encoder.x.rows > 0) ThresholdEncoder(encoder, threshold, threads).run(codes.get());
  return codes;
}

void ThresholdCodes::move_to(DType dtype, void* values, int32_t* indices) {
  char* to = static_cast<char*>(values);
  for (Block& block : blocks) {
    level().store_row(block.values.get(), block.count, dtype, to);
    std::memcpy(indices, block.indices.get(), static_cast<size_t>(block.count) * sizeof(int32_t));
    to += block.count * element_size(dtype);
    indices += block.count;
    block = Block{};
  }
  blocks.clear();
}

}  // namespace saekernels
