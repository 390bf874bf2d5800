// Exact top-k encoding: every score is computed once, in fp32 and in a fixed order, so selection needs no second look.
//
// Workers take latent tiles and keep, for each row of the block, the best k of the tiles they saw; these are then
// merged row by row. Any worker's k-th best is a lower bound of the row's, so the outcome doesn't depend on who took
// what.
#include <limits>

#include "cpu/candidates.h"
#include "cpu/score_tiles.h"

namespace saekernels {
namespace {

constexpr int64_t kCandidateBytes = 16 << 20;
constexpr int64_t kFewRows = 16;

class TopkEncoder {
 public:
  TopkEncoder(const Encoder& encoder, int64_t k, Activation activation, int threads)
      : simd_(level()),
        encoder_(encoder),
        k_(k),
        activation_(activation),
        depth_(encoder.x.cols),
        latents_(encoder.weight.rows),
        workers_(gemm_workers(encoder.x.rows, latents_, depth_, threads)),
        shape_(tile_shape(simd_, columns(), depth_)),
        tiles_(ceil_div(latents_, shape_.columns)),
        capacity_(candidate_capacity(k, latents_)),
        block_(block_rows(encoder.x.rows, depth_, workers_ * (capacity_ * 8 + 8), kCandidateBytes)),
        packed_(simd_, block_, depth_),
        keys_(workers_ * block_ * capacity_),
        counts_(workers_ * block_),
        thresholds_(workers_ * block_),
        pre_bias_(load_vector(simd_, encoder.pre_bias)),
        scratch_(static_cast<size_t>(workers_)) {
    for (TileScratch& s : scratch_) s = TileScratch(shape_.columns, depth_, shape_.group, 1);
  }

  void run(void* values, int32_t* indices) {
    for (int64_t first = 0; first < encoder_.x.rows; first += block_) {
      const int64_t rows = std::min(block_, encoder_.x.rows - first);
      packed_.pack(encoder_.x, pre_bias_.get(), nullptr, first, rows, workers_);
      std::fill(counts_.get(), counts_.get() + workers_ * block_, 0);
      std::fill(thresholds_.get(), thresholds_.get() + workers_ * block_, std::numeric_limits<float>::quiet_NaN());
      parallel_for(tiles_, workers_, [&](int64_t tile, int worker) { collect(tile, worker, rows); });
      const int64_t share = ceil_div(rows, 4 * workers_);
      parallel_for(ceil_div(rows, share), workers_, [&](int64_t task, int) {
        emit(first, task * share, std::min(rows, (task + 1) * share), values, indices);
      });
    }
  }

 private:
  // Narrower tiles than the cache allows where there would be too few for the workers, or where few rows leave packing
  // as most of the work: then the packed tile should still be near when it is read.
  int64_t columns() const {
    if (encoder_.x.rows <= kFewRows) return kMaxPanel;
    return std::min(tile_columns(depth_), round_up(ceil_div(latents_, 4 * workers_), kMaxPanel));
  }

  Candidates candidates(int worker, int64_t row) const {
    const int64_t slot = worker * block_ + row;
    return {keys_.get() + slot * capacity_, counts_.get() + slot, thresholds_.get() + slot};
  }

  void collect(int64_t tile, int worker, int64_t rows) const {
    const TileScratch& scratch = scratch_[static_cast<size_t>(worker)];
    const int64_t first = tile * shape_.columns;
    const int64_t count = std::min(shape_.columns, latents_ - first);
    const bool magnitude = activation_ == Activation::kAbs;
    pack_tile(simd_, encoder_.weight, first, count, scratch.weight.get());
    load_tile(simd_, encoder_.bias, first, count, shape_.columns, scratch.bias.get());
    visit_tile(simd_, &packed_, 1, rows, depth_, shape_, count, scratch, [&](int64_t row, float* scores) {
      const Candidates best = candidates(worker, row);
      const int hits = simd_.filter_above(scores, scratch.bias.get(), static_cast<int>(count), *best.threshold,
                                          magnitude, scratch.hits.get());
      for (int h = 0; h < hits; ++h) {
        const int64_t j = scratch.hits[h];
        const bool negative = magnitude && scores[j] < 0;
        best.add(negative ? -scores[j] : scores[j], static_cast<int32_t>(first + j), negative, k_, capacity_);
      }
    });
  }

  void emit(int64_t first, int64_t begin, int64_t end, void* values, int32_t* indices) const {
    Buffer<uint64_t> merged(workers_ * capacity_);
    Buffer<float> out(k_);
    for (int64_t row = begin; row < end; ++row) {
      int64_t n = 0;
      for (int w = 0; w < workers_; ++w) {
        const Candidates part = candidates(w, row);
        std::copy(part.keys, part.keys + *part.count, merged.get() + n);
        n += *part.count;
      }
      sort_best(merged.get(), n, k_);
      const int64_t at = (first + row) * k_;
      for (int64_t i = 0; i < k_; ++i) {
        indices[at + i] = key_index(merged[i]);
        out[i] = value_of(merged[i]);
      }
      simd_.store_row(out.get(), k_, encoder_.x.dtype,
                      static_cast<char*>(values) + at * element_size(encoder_.x.dtype));
    }
  }

  float value_of(uint64_t key) const {
    const float score = key_score(key);
    if (activation_ == Activation::kRelu) return score < 0 ? 0.0f : score;
    return key_negative(key) ? -score : score;
  }

  const Level& simd_;
  const Encoder& encoder_;
  int64_t k_;
  Activation activation_;
  int64_t depth_, latents_;
  int workers_;
  TileShape shape_;
  int64_t tiles_, capacity_, block_;
  PackedRows packed_;
  Buffer<uint64_t> keys_;
  Buffer<int32_t> counts_;
  Buffer<float> thresholds_;
  Buffer<float> pre_bias_;
  std::vector<TileScratch> scratch_;
};

}  // namespace

void encode_topk(const Encoder& encoder, int64_t k, Activation activation, int threads, void* values,
                 int32_t* indices) {
  if (encoder.x.rows == 0 || k == 0) return;
  TopkEncoder(encoder, k, activation, threads).run(values, indices);
}

}  // namespace saekernels
