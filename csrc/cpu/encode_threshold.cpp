// Threshold encoding in CSR. The number of survivors is known only afterwards, so each task keeps its own list; a
// table of counts per (task, row) then gives every entry its place, without sorting and whatever the threads did.
#include <cstring>

#include "cpu/score_tiles.h"

namespace saekernels {
namespace {

constexpr int64_t kCountBytes = 8 << 20;

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
        depth_(encoder.x.cols),
        latents_(encoder.weight.rows),
        workers_(gemm_workers(encoder.x.rows, latents_, depth_, threads)),
        shape_(tile_shape(simd_, tile_columns(depth_), depth_)),
        tiles_(ceil_div(latents_, shape_.columns)),
        block_(block_rows(encoder.x.rows, depth_, tiles_ * 4, kCountBytes)),
        packed_(simd_, block_, depth_),
        counts_(tiles_ * block_),
        pre_bias_(load_vector(simd_, encoder.pre_bias)),
        scratch_(static_cast<size_t>(workers_)) {
    for (TileScratch& s : scratch_) s = TileScratch(shape_.columns, depth_, shape_.group, 1);
  }

  void run(ThresholdCodes* codes) {
    codes->offsets.assign(static_cast<size_t>(encoder_.x.rows) + 1, 0);
    for (int64_t first = 0; first < encoder_.x.rows; first += block_) {
      const int64_t rows = std::min(block_, encoder_.x.rows - first);
      packed_.pack(encoder_.x, pre_bias_.get(), nullptr, first, rows, workers_);
      hits_.assign(static_cast<size_t>(tiles_), {});
      parallel_for(tiles_, workers_, [&](int64_t tile, int worker) { collect(tile, worker, rows); });
      gather(first, rows, codes);
    }
  }

 private:
  void collect(int64_t tile, int worker, int64_t rows) {
    const TileScratch& scratch = scratch_[static_cast<size_t>(worker)];
    const int64_t first = tile * shape_.columns;
    const int64_t count = std::min(shape_.columns, latents_ - first);
    std::vector<Hit>& list = hits_[static_cast<size_t>(tile)];
    pack_tile(simd_, encoder_.weight, first, count, scratch.weight.get());
    load_tile(simd_, encoder_.bias, first, count, shape_.columns, scratch.bias.get());
    load_threshold(first, count, scratch.extra.get());
    visit_tile(simd_, &packed_, 1, rows, depth_, shape_, count, scratch, [&](int64_t row, float* scores) {
      const int n = simd_.filter_each(scores, scratch.bias.get(), scratch.extra.get(), static_cast<int>(count),
                                      scratch.hits.get());
      for (int h = 0; h < n; ++h) {
        const int64_t j = scratch.hits[h];
        list.push_back({scores[j], static_cast<int32_t>(first + j)});
      }
      counts_[tile * block_ + row] = n;
    });
  }

  void load_threshold(int64_t first, int64_t count, float* out) const {
    if (threshold_.cols > 1) return load_tile(simd_, threshold_, first, count, shape_.columns, out);
    simd_.load_row(threshold_, 0, 0, 1, out);
    std::fill(out + 1, out + shape_.columns, out[0]);
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
  int64_t depth_, latents_;
  int workers_;
  TileShape shape_;
  int64_t tiles_, block_;
  PackedRows packed_;
  Buffer<int32_t> counts_;
  Buffer<float> pre_bias_;
  std::vector<TileScratch> scratch_;
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
