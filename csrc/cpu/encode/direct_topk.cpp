// Workers take latent tiles and keep, for each row, the best k of the tiles they saw; these are then merged row by row.
// Any worker's k-th best is a lower bound of the row's, so the outcome doesn't depend on who took what.
#include "cpu/encode/direct_topk.h"

#include "cpu/encode/emit.h"
#include "cpu/encode/rescore.h"
#include "cpu/encode/score_tiles.h"
#include "cpu/rows.h"
#include "cpu/stats.h"

namespace saekernels {
namespace {

constexpr int64_t kColumns = 256;
constexpr int64_t kNear = 16;      // latents that stay in a near cache while all rows meet them
constexpr int64_t kTogether = 12;  // rows whose scores are kept at a time

class DirectTopk {
 public:
  DirectTopk(const Encoder& encoder, int64_t k, Activation activation, int64_t capacity_rows, int threads)
      : simd_(level()),
        encoder_(encoder),
        k_(k),
        activation_(activation),
        latents_(encoder.weight.rows),
        workers_(gemm_workers(capacity_rows, latents_, encoder.x.cols, threads)),
        capacity_(candidate_capacity(k, latents_)),
        block_(block_rows(capacity_rows, encoder.x.cols, workers_ * capacity_ * 8, candidate_bytes(workers_))),
        rows_(simd_, block_, encoder.x.cols),
        pre_bias_(load_vector(simd_, encoder.pre_bias)),
        scale_(load_vector(simd_, encoder.scale)),
        keys_(workers_ * block_ * capacity_),
        counts_(workers_ * block_),
        thresholds_(workers_ * block_) {
    for (int w = 0; w < workers_; ++w) scratch_.emplace_back(encoder.weight);
  }

  int64_t block() const { return block_; }

  void run(const int64_t* ids, int64_t n, const TopkOut& out) {
    rows_.pick(encoder_.x, pre_bias_.get(), ids, n, workers_);
    for (int64_t slot = 0; slot < workers_ * block_; ++slot) candidates(slot).reset();
    parallel_for(ceil_div(latents_, kColumns), workers_, [&](int64_t tile, int worker) { scan(tile, worker, n); });
    parallel_for(n, workers_for(static_cast<double>(n * workers_ * capacity_), 1e4, workers_), [&](int64_t i, int) {
      Buffer<uint64_t> merged(workers_ * capacity_);
      Buffer<float> scratch(k_);
      int64_t found = 0;
      for (int w = 0; w < workers_; ++w) {
        const Candidates part = candidates(w * block_ + i);
        std::copy(part.keys, part.keys + *part.count, merged.get() + found);
        found += *part.count;
      }
      emit_row(simd_, merged.get(), found, k_, activation_, out.dtype, ids[i], scratch.get(), out.values, out.indices);
    });
    if (encoder_.scale.data != nullptr) write_scores(ids, n, out);
  }

 private:
  struct Scratch {
    explicit Scratch(const Matrix& weight) : tile(weight, kColumns), bias(kColumns) {}
    LatentTile tile;
    Buffer<float> bias;
  };

  Candidates candidates(int64_t slot) const {
    return {keys_.get() + slot * capacity_, counts_.get() + slot, thresholds_.get() + slot};
  }

  // Keys are of scaled scores: the scores themselves are computed again.
  void write_scores(const int64_t* ids, int64_t n, const TopkOut& out) const {
    Pairs chosen;
    for (int64_t i = 0; i <= n; ++i) chosen.offsets.push_back(i * k_);
    for (int64_t i = 0; i < n; ++i) {
      chosen.latents.insert(chosen.latents.end(), out.indices + ids[i] * k_, out.indices + (ids[i] + 1) * k_);
    }
    rescore(encoder_, rows_, workers_, &chosen);
    for (float& score : chosen.scores) score = value_of(ScaledKey{0, score}, activation_);
    for (int64_t i = 0; i < n; ++i) {
      simd_.store_row(chosen.scores.data() + i * k_, k_, out.dtype,
                      static_cast<char*>(out.values) + ids[i] * k_ * element_size(out.dtype));
    }
  }

  // Exact scores, finished and scaled.
  void scale(float* scores, const float* bias, int64_t first, int64_t count) const {
    for (int64_t j = 0; j < count; ++j) scores[j] = (scores[j] + bias[j]) * scale_[first + j];
  }

  void scan(int64_t tile, int worker, int64_t n) const {
    const Scratch& scratch = scratch_[static_cast<size_t>(worker)];
    const int64_t first = tile * kColumns, count = std::min(kColumns, latents_ - first);
    const Matrix latents = scratch.tile.load(simd_, encoder_.weight, first, count);
    load_tile(simd_, encoder_.bias, first, count, kColumns, scratch.bias.get());
    alignas(64) static constexpr float kNothing[kNear] = {};
    alignas(64) float scores[kTogether * kNear];
    uint16_t hits[kNear];
    const bool magnitude = activation_ == Activation::kAbs, scaled = encoder_.scale.data != nullptr;
    for (int64_t j = 0; j < count; j += kNear) {
      const int64_t near = std::min(kNear, count - j);
      for (int64_t i = 0; i < n; ++i) {
        if (i % kTogether == 0) {
          const int64_t rows = std::min(kTogether, n - i);
          simd_.dot_rows(rows_.row(i), rows_.padded(), rows, latents, j, near, scores, kNear);
        }
        float* own = scores + i % kTogether * kNear;
        const Candidates best = candidates(worker * block_ + i);
        const float* bias = scratch.bias.get() + j;
        if (scaled) scale(own, bias, first + j, near);
        const int found = simd_.filter_above(own, nullptr, scaled ? kNothing : bias, static_cast<int>(near),
                                             *best.threshold, magnitude, hits);
        for (int h = 0; h < found; ++h) {
          const float score = own[hits[h]];
          const bool negative = magnitude && score < 0;
          best.add(negative ? -score : score, static_cast<int32_t>(first + j + hits[h]), negative, k_, capacity_);
        }
      }
    }
  }

  const Level& simd_;
  const Encoder& encoder_;
  int64_t k_;
  Activation activation_;
  int64_t latents_;
  int workers_;
  int64_t capacity_, block_;
  CentredRows rows_;
  Buffer<float> pre_bias_, scale_;
  Buffer<uint64_t> keys_;
  Buffer<int32_t> counts_;
  Buffer<float> thresholds_;
  std::vector<Scratch> scratch_;
};

}  // namespace

void direct_topk(const Encoder& encoder, int64_t k, Activation activation, const std::vector<int64_t>& ids, int threads,
                 const TopkOut& out) {
  if (ids.empty()) return;
  const auto n = static_cast<int64_t>(ids.size());
  DirectTopk encode(encoder, k, activation, n, threads);
  for (int64_t i = 0; i < n; i += encode.block()) encode.run(ids.data() + i, std::min(encode.block(), n - i), out);
}

}  // namespace saekernels
