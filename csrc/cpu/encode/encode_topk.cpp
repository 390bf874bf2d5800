// Exact top-k encoding: screen, certify, rescore, select.
//
// A screen gives each score an interval; a row keeps the latents whose interval reaches the k-th largest lower end seen
// so far, so the true best k are among them. The k with the largest lower ends are scored exactly first: the worst of
// these scores is a floor that few of the others' upper ends reach, and only those are scored too. Rows with more
// candidates than room meet the next screen together, whose intervals are narrower; rows that the last cannot certify
// either, or whose numbers allow no bound, are scored exactly as a whole. A score has one order of summation on every
// way, so which way a row went cannot be seen in its result.
//
// The intervals of int8 are so wide that the k-th lower end is a poor floor. A floor is then guessed from the middles
// of the intervals seen so far, and certified in the end: it was right if k scores reach it. For what is seen first to
// be a sample of all, tiles are taken in an order that follows nothing, from the middle on: latents sorted by their
// norms have the best at one end.
#include <numeric>
#include <utility>

#include "cpu/encode/direct_topk.h"
#include "cpu/encode/emit.h"
#include "cpu/encode/rescore.h"
#include "cpu/encode/screens/screen.h"
#include "cpu/encode/topk_candidates.h"
#include "cpu/stats.h"

namespace saekernels {
namespace {

using Ids = std::vector<int64_t>;

constexpr int64_t kRowsAhead = 4;

// Rows that a screen did not certify: in blocks that it is not the fastest for, with more candidates than room, and
// without a bound.
struct Uncertified {
  Ids declined, crowded, unbounded;
};

class ScreenedTopk {
 public:
  ScreenedTopk(const Encoder& encoder, int64_t k, Activation activation, int threads, Screening kind, const Ids& ids)
      : simd_(level()),
        encoder_(encoder),
        k_(k),
        activation_(activation),
        magnitude_(activation == Activation::kAbs),
        ids_(ids),
        latents_(encoder.weight.rows),
        workers_(gemm_workers(static_cast<int64_t>(ids.size()), latents_, encoder.x.cols, threads)),
        block_(block_rows(static_cast<int64_t>(ids.size()), encoder.x.cols,
                          TopkCandidates::bytes_per_row(k, latents_, workers_), candidate_bytes(workers_))),
        rows_(simd_, block_, encoder.x.cols),
        kind_(kind),
        screen_(make_screen(encoder, kind, block_, round_up(ceil_div(latents_, 4 * workers_), kMaxPanel))),
        candidates_(k, latents_, block_, workers_, kind == Screening::kInt8, kind == Screening::kFp32),
        merged_(static_cast<size_t>(block_)),
        pre_bias_(load_vector(simd_, encoder.pre_bias)),
        scaled_(encoder.scale.data != nullptr),
        scale_(load_vector(simd_, encoder.scale)) {
    for (int w = 0; w < workers_; ++w) tiles_.push_back(screen_->make_tile());
  }

  Uncertified run(const TopkOut& out) {
    Uncertified left;
    const auto all = static_cast<int64_t>(ids_.size());
    for (int64_t first = 0; first < all; first += block_) {
      const int64_t rows = std::min(block_, all - first);
      const int64_t* ids = ids_.data() + first;
      rows_.pick(encoder_.x, pre_bias_.get(), ids, rows, workers_);
      screen_->pack(rows_, rows, workers_);
      candidates_.start(*screen_, rows);
      const int64_t tiles = ceil_div(latents_, screen_->columns()), step = coprime_step(tiles);
      parallel_for(tiles, workers_,
                   [&](int64_t tile, int worker) { scan((tiles / 2 + tile * step) % tiles, worker, rows); });
      parallel_for(rows, workers_,
                   [&](int64_t row, int) { candidates_.merge(row, &merged_[static_cast<size_t>(row)]); });
      for (int64_t row = 0; row < rows; ++row) {
        if (!merged_[static_cast<size_t>(row)].empty()) continue;
        Ids& bounded = candidates_.declined() ? left.declined : left.crowded;
        (screen_->row_reach(row).finite() ? bounded : left.unbounded).push_back(ids[row]);
      }
      const Pairs best = best_ends(rows);
      const Pairs rest = contenders(rows, best);
      if (scaled_) {
        emit<ScaledKey>(ids, rows, best, rest, out, &left.crowded);
      } else {
        emit<uint64_t>(ids, rows, best, rest, out, &left.crowded);
      }
    }
    const size_t uncertified = left.declined.size() + left.crowded.size() + left.unbounded.size();
    const int64_t certified = all - static_cast<int64_t>(uncertified);
    count(stats().screened_rows, certified);
    count(stats().rows_by(kind_), certified);
    return left;
  }

 private:
  // Near the golden section, whose multiples spread evenly however few they are.
  static int64_t coprime_step(int64_t tiles) {
    auto step = std::max<int64_t>(static_cast<int64_t>(0.618 * static_cast<double>(tiles)), 1);
    while (std::gcd(step, tiles) != 1) ++step;
    return step;
  }

  void scan(int64_t index, int worker, int64_t rows) {
    if (candidates_.hopeless()) return;
    ScreenTile& tile = tiles_[static_cast<size_t>(worker)];
    const int64_t columns = screen_->columns();
    screen_->load(encoder_, index * columns, std::min(columns, latents_ - index * columns), &tile);
    candidates_.meet(tile.count, worker);
    for (int64_t row = 0; row < rows; row += screen_->group()) {
      const int64_t group = std::min(screen_->group(), rows - row);
      if (screen_->gated(group)) {
        scan_gated(row, group, worker, &tile);
      } else {
        scan_filtered(row, group, worker, &tile);
      }
    }
    candidates_.judge(rows, worker);
  }

  void scan_filtered(int64_t first, int64_t group, int worker, ScreenTile* tile) {
    screen_->product(first, group, *tile);
    for (int64_t r = 0; r < group; ++r) {
      float* scores = tile->scores.get() + r * screen_->columns();
      candidates_.ask_for(first + r + kRowsAhead, worker);
      const float limit = candidates_.limit(*screen_, first + r, *tile, encoder_.x.cols, worker);
      const int hits = simd_.filter_above(scores, tile->multiply, tile->bias.get(), static_cast<int>(tile->count),
                                          limit, magnitude_, tile->hits.get());
      candidates_.add(*screen_, first + r, *tile, scores, hits, encoder_.x.cols, magnitude_, worker);
    }
  }

  void scan_gated(int64_t first, int64_t group, int worker, ScreenTile* tile) {
    for (int64_t r = 0; r < round_up(group, 2 * kScreenPanel); ++r) {
      tile->limits[r] = r < group ? candidates_.limit(*screen_, first + r, *tile, encoder_.x.cols, worker)
                                  : std::numeric_limits<float>::infinity();
    }
    screen_->gated_product(first, group, magnitude_, *tile);
    const int64_t words = round_up(tile->count, kMaxPanel) / (2 * kScreenPanel);
    for (int64_t r = 0; r < group; ++r) {
      candidates_.ask_for(first + r + kRowsAhead, worker);
      const int hits = list_marks(tile->marks.get() + r * words, words, tile);
      candidates_.add(*screen_, first + r, *tile, tile->scores.get() + r * screen_->columns(), hits, encoder_.x.cols,
                      magnitude_, worker);
    }
  }

  // The positions of set bits, less those that are padding, into tile->hits.
  static int list_marks(const uint32_t* marks, int64_t words, ScreenTile* tile) {
    int n = 0;
    for (int64_t w = 0; w < words; ++w) {
      for (uint32_t mask = marks[w]; mask != 0; mask &= mask - 1) {
        const int64_t j = 2 * kScreenPanel * w + __builtin_ctz(mask);
        if (j < tile->count) tile->hits[n++] = static_cast<uint16_t>(j);
      }
    }
    return n;
  }

  // What a pair is ranked by, with its sign.
  float compared(const Pairs& pairs, size_t p) const {
    return scaled_ ? pairs.scores[p] * scale_[pairs.latents[p]] : pairs.scores[p];
  }

  void put(const Pairs& pairs, size_t p, std::vector<uint64_t>* keys) const {
    keys->push_back(key_of(pairs.scores[p], pairs.latents[p], activation_));
  }

  void put(const Pairs& pairs, size_t p, std::vector<ScaledKey>* keys) const {
    keys->push_back({key_of(compared(pairs, p), pairs.latents[p], activation_), pairs.scores[p]});
  }

  // The k candidates with the largest lower ends of each row, scored.
  Pairs best_ends(int64_t rows) const {
    Pairs pairs;
    pairs.offsets.assign(1, 0);
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<Interval>& all = merged_[static_cast<size_t>(row)];
      for (int64_t i = 0; i < k_ && !all.empty(); ++i) pairs.latents.push_back(all[static_cast<size_t>(i)].index);
      pairs.offsets.push_back(static_cast<int64_t>(pairs.latents.size()));
    }
    rescore(encoder_, rows_, workers_, &pairs);
    return pairs;
  }

  // The other candidates that reach the worst score of those, scored.
  Pairs contenders(int64_t rows, const Pairs& best) const {
    Pairs pairs;
    pairs.offsets.assign(1, 0);
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<Interval>& all = merged_[static_cast<size_t>(row)];
      float floor = std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < k_ && !all.empty(); ++i) {
        const float score = compared(best, static_cast<size_t>(best.offsets[static_cast<size_t>(row)] + i));
        const float ranked = activation_ == Activation::kAbs ? std::fabs(score) : score;
        if (ranked < floor) floor = ranked;  // NaN ranks above all
      }
      for (size_t i = static_cast<size_t>(k_); i < all.size(); ++i) {
        if (!(all[i].high < floor)) pairs.latents.push_back(all[i].index);
      }
      pairs.offsets.push_back(static_cast<int64_t>(pairs.latents.size()));
    }
    rescore(encoder_, rows_, workers_, &pairs);
    return pairs;
  }

  // Rows whose floor turns out to have been too high are not written, and join `crowded`.
  template <class Key>
  void emit(const int64_t* ids, int64_t rows, const Pairs& best, const Pairs& rest, const TopkOut& out,
            Ids* crowded) const {
    const int64_t share = ceil_div(rows, 4 * workers_);
    std::vector<char> wrong(static_cast<size_t>(rows), 0);
    parallel_for(ceil_div(rows, share), workers_, [&](int64_t task, int) {
      std::vector<Key> keys;
      Buffer<float> scratch(k_);
      for (int64_t row = task * share; row < std::min(rows, (task + 1) * share); ++row) {
        keys.clear();
        for (const Pairs* pairs : {&best, &rest}) {
          const auto end = static_cast<size_t>(pairs->offsets[static_cast<size_t>(row) + 1]);
          for (auto p = static_cast<size_t>(pairs->offsets[static_cast<size_t>(row)]); p < end; ++p) {
            put(*pairs, p, &keys);
          }
        }
        if (keys.empty()) continue;
        const float floor = candidates_.floor(row);
        const auto reached = std::count_if(keys.begin(), keys.end(), [=](const Key& key) {
          return !(score_of(key) < floor);  // NaN ranks above all
        });
        wrong[static_cast<size_t>(row)] = reached < k_ ? 1 : 0;
        if (reached < k_) continue;
        emit_row(simd_, keys.data(), static_cast<int64_t>(keys.size()), k_, activation_, out.dtype, ids[row],
                 scratch.get(), out.values, out.indices);
      }
    });
    for (int64_t row = 0; row < rows; ++row) {
      if (wrong[static_cast<size_t>(row)] != 0) crowded->push_back(ids[row]);
    }
  }

  const Level& simd_;
  const Encoder& encoder_;
  int64_t k_;
  Activation activation_;
  bool magnitude_;
  const Ids& ids_;
  int64_t latents_;
  int workers_;
  int64_t block_;
  CentredRows rows_;
  Screening kind_;
  std::unique_ptr<Screen> screen_;
  TopkCandidates candidates_;
  std::vector<std::vector<Interval>> merged_;
  Buffer<float> pre_bias_;
  bool scaled_;
  Buffer<float> scale_;
  std::vector<ScreenTile> tiles_;
};

}  // namespace

void encode_topk(const Encoder& encoder, int64_t k, Activation activation, int threads, const TopkOut& out) {
  if (encoder.x.rows == 0 || k == 0) return;
  Ids all(static_cast<size_t>(encoder.x.rows));
  std::iota(all.begin(), all.end(), 0);
  const bool prepared = encoder.prepared != nullptr;
  const std::vector<Screening> screens =
      screens_for({encoder.x.rows, encoder.weight.rows, encoder.x.cols, k, prepared});
  // Packing the latents costs more than a few rows save.
  const auto pays = [&](Screening kind, size_t rows) {
    const bool packed = prepared && kind != Screening::kFp32 && encoder.prepared->of(kind) != nullptr;
    return packed || static_cast<int64_t>(rows) > kDirectRows;
  };
  if (!pays(screens[0], all.size())) {
    direct_topk(encoder, k, activation, all, threads, out);
    return count(stats().direct_rows, encoder.x.rows);
  }
  Ids unbounded;
  std::vector<char> fell(static_cast<size_t>(encoder.x.rows), 0);
  const auto fall = [&](const Ids& ids) {
    return std::count_if(ids.begin(), ids.end(),
                         [&](int64_t id) { return std::exchange(fell[static_cast<size_t>(id)], 1) == 0; });
  };
  int64_t crowded = 0;  // for the first time
  for (size_t i = 0; i < screens.size() && !all.empty(); ++i) {
    if (!pays(screens[i], all.size())) continue;
    count(stats().rescreened_rows, std::exchange(crowded, 0));
    Uncertified left = ScreenedTopk(encoder, k, activation, threads, screens[i], all).run(out);
    crowded = fall(left.crowded);
    count(stats().fallback_rows, crowded + fall(left.unbounded));
    unbounded.insert(unbounded.end(), left.unbounded.begin(), left.unbounded.end());
    all = std::move(left.crowded);
    all.insert(all.end(), left.declined.begin(), left.declined.end());
  }
  count(stats().overflow_rows, static_cast<int64_t>(all.size()));
  count(stats().unbounded_rows, static_cast<int64_t>(unbounded.size()));
  // Together: every call reads all weights.
  all.insert(all.end(), unbounded.begin(), unbounded.end());
  direct_topk(encoder, k, activation, all, threads, out);
}

}  // namespace saekernels
