// Exact top-k encoding: screen, certify, rescore, select.
//
// A screen gives each score an interval; a row keeps the latents whose interval reaches the k-th largest lower end seen
// so far, so the true best k are among them. Only these are scored exactly, latent by latent, and sorted. A row with
// more candidates than room, or whose numbers allow no bound, is scored exactly as a whole instead. A score has one
// order of summation on every way, so which way a row went cannot be seen in its result.
#include "cpu/encode/direct_topk.h"
#include "cpu/encode/emit.h"
#include "cpu/encode/intervals.h"
#include "cpu/encode/rescore.h"
#include "cpu/encode/screen.h"
#include "cpu/stats.h"

namespace saekernels {
namespace {

class ScreenedTopk {
 public:
  ScreenedTopk(const Encoder& encoder, int64_t k, Activation activation, int threads)
      : simd_(level()),
        encoder_(encoder),
        k_(k),
        activation_(activation),
        latents_(encoder.weight.rows),
        workers_(gemm_workers(encoder.x.rows, latents_, encoder.x.cols, threads)),
        capacity_(interval_capacity(k, latents_)),
        block_(block_rows(encoder.x.rows, encoder.x.cols,
                          workers_ * (capacity_ * static_cast<int64_t>(sizeof(Interval)) + 8),
                          candidate_bytes(workers_))),
        rows_(simd_, block_, encoder.x.cols),
        screen_(make_screen(encoder, block_, round_up(ceil_div(latents_, 4 * workers_), kMaxPanel))),
        items_(workers_ * block_ * capacity_),
        counts_(workers_ * block_),
        floors_(workers_ * block_),
        pre_bias_(load_vector(simd_, encoder.pre_bias)) {
    for (int w = 0; w < workers_; ++w) tiles_.push_back(screen_->make_tile());
  }

  void run(const TopkOut& out) {
    for (int64_t first = 0; first < encoder_.x.rows; first += block_) {
      const int64_t rows = std::min(block_, encoder_.x.rows - first);
      rows_.load(encoder_.x, pre_bias_.get(), first, rows, workers_);
      screen_->pack(rows_, rows, workers_);
      reset(rows);
      parallel_for(ceil_div(latents_, screen_->columns()), workers_,
                   [&](int64_t tile, int worker) { scan(tile, worker, rows); });
      Pairs pairs;
      const std::vector<int64_t> uncertified = certify(rows, &pairs);
      rescore(encoder_, rows_, workers_, &pairs);
      emit(first, rows, pairs, out);
      direct_topk(encoder_, k_, activation_, rows_, uncertified, first, workers_, out);
    }
  }

 private:
  Intervals intervals(int worker, int64_t row) const {
    const int64_t slot = worker * block_ + row;
    return {items_.get() + slot * capacity_, counts_.get() + slot, floors_.get() + slot};
  }

  void reset(int64_t rows) const {
    for (int w = 0; w < workers_; ++w) {
      for (int64_t row = 0; row < rows; ++row) {
        const Intervals state = intervals(w, row);
        state.reset();
        if (!screen_->row_reach(row).finite()) *state.count = kOverflowed;
      }
    }
  }

  void scan(int64_t index, int worker, int64_t rows) {
    ScreenTile& tile = tiles_[static_cast<size_t>(worker)];
    const int64_t columns = screen_->columns();
    screen_->load(encoder_, index * columns, std::min(columns, latents_ - index * columns), &tile);
    for (int64_t row = 0; row < rows; row += screen_->group()) {
      const int64_t group = std::min(screen_->group(), rows - row);
      screen_->product(row, group, tile);
      for (int64_t r = 0; r < group; ++r) filter(row + r, tile, tile.scores.get() + r * columns, worker);
    }
  }

  void filter(int64_t row, const ScreenTile& tile, float* scores, int worker) const {
    const Intervals state = intervals(worker, row);
    if (state.overflowed()) return;
    const bool magnitude = activation_ == Activation::kAbs;
    const RowReach row_reach = screen_->row_reach(row);
    const float widest = reach(row_reach, tile.widest, encoder_.x.cols);
    // NaN lets everything pass; the latents' own reaches decide then.
    const bool bounded = widest < std::numeric_limits<float>::infinity() && *state.floor - *state.floor == 0;
    const float limit = bounded ? *state.floor - widest : std::numeric_limits<float>::quiet_NaN();
    const int hits =
        simd_.filter_above(scores, tile.bias.get(), static_cast<int>(tile.count), limit, magnitude, tile.hits.get());
    for (int h = 0; h < hits; ++h) {
      const int64_t j = tile.hits[h];
      const float score = magnitude ? std::fabs(scores[j]) : scores[j];
      const float own = reach(row_reach, tile.reach_of(j), encoder_.x.cols);
      if (!state.add(score, own, static_cast<int32_t>(tile.first + j), k_, capacity_)) return;
    }
  }

  // Collects what the workers kept of each row that is certified; returns the other rows.
  std::vector<int64_t> certify(int64_t rows, Pairs* pairs) const {
    std::vector<int64_t> uncertified;
    std::vector<Interval> merged(static_cast<size_t>(workers_ * capacity_));
    pairs->offsets.assign(1, 0);
    int64_t overflowed = 0;
    for (int64_t row = 0; row < rows; ++row) {
      int32_t n = 0;
      bool certain = true;
      float floor = -std::numeric_limits<float>::infinity();
      for (int w = 0; w < workers_; ++w) {
        const Intervals part = intervals(w, row);
        certain = certain && !part.overflowed();
        if (!certain) break;
        std::copy(part.items, part.items + *part.count, merged.begin() + n);
        n += *part.count;
        floor = std::max(floor, *part.floor);
      }
      const Intervals all{merged.data(), &n, &floor};
      if (certain) all.cut(k_);
      if (certain && n >= k_) {
        for (int32_t i = 0; i < n; ++i) pairs->latents.push_back(merged[static_cast<size_t>(i)].index);
      } else {
        uncertified.push_back(row);
        overflowed += screen_->row_reach(row).finite() ? 1 : 0;
      }
      pairs->offsets.push_back(static_cast<int64_t>(pairs->latents.size()));
    }
    const auto failed = static_cast<int64_t>(uncertified.size());
    count(stats().screened_rows, rows - failed);
    count(stats().overflow_rows, overflowed);
    count(stats().unbounded_rows, failed - overflowed);
    return uncertified;
  }

  void emit(int64_t first, int64_t rows, const Pairs& pairs, const TopkOut& out) const {
    const int64_t share = ceil_div(rows, 4 * workers_);
    parallel_for(ceil_div(rows, share), workers_, [&](int64_t task, int) {
      std::vector<uint64_t> keys;
      Buffer<float> scratch(k_);
      for (int64_t row = task * share; row < std::min(rows, (task + 1) * share); ++row) {
        const auto begin = static_cast<size_t>(pairs.offsets[static_cast<size_t>(row)]);
        const auto end = static_cast<size_t>(pairs.offsets[static_cast<size_t>(row) + 1]);
        if (begin == end) continue;
        keys.clear();
        for (size_t p = begin; p < end; ++p) keys.push_back(key_of(pairs.scores[p], pairs.latents[p], activation_));
        emit_row(simd_, keys.data(), static_cast<int64_t>(end - begin), k_, activation_, out.dtype, first + row,
                 scratch.get(), out.values, out.indices);
      }
    });
  }

  const Level& simd_;
  const Encoder& encoder_;
  int64_t k_;
  Activation activation_;
  int64_t latents_;
  int workers_;
  int64_t capacity_, block_;
  CentredRows rows_;
  std::unique_ptr<Screen> screen_;
  Buffer<Interval> items_;
  Buffer<int32_t> counts_;
  Buffer<float> floors_;
  Buffer<float> pre_bias_;
  std::vector<ScreenTile> tiles_;
};

void encode_few(const Encoder& encoder, int64_t k, Activation activation, int threads, const TopkOut& out) {
  const Level& simd = level();
  const Buffer<float> pre_bias = load_vector(simd, encoder.pre_bias);
  CentredRows rows(simd, encoder.x.rows, encoder.x.cols);
  rows.load(encoder.x, pre_bias.get(), 0, encoder.x.rows, 1);
  std::vector<int64_t> ids;
  for (int64_t row = 0; row < encoder.x.rows; ++row) ids.push_back(row);
  direct_topk(encoder, k, activation, rows, ids, 0, threads, out);
  count(stats().direct_rows, encoder.x.rows);
}

}  // namespace

void encode_topk(const Encoder& encoder, int64_t k, Activation activation, int threads, const TopkOut& out) {
  if (encoder.x.rows == 0 || k == 0) return;
  if (encoder.x.rows <= kDirectRows) return encode_few(encoder, k, activation, threads, out);
  ScreenedTopk(encoder, k, activation, threads).run(out);
}

}  // namespace saekernels
