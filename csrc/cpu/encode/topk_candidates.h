// The candidates of a block of rows for their best k, as workers find them tile by tile.
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "cpu/encode/intervals.h"
#include "cpu/encode/screens/screen.h"

namespace saekernels {

class TopkCandidates {
 public:
  // `guess` where intervals are wide: floors are then guessed, and must be certified. `last`: no other screen follows.
  TopkCandidates(int64_t k, int64_t latents, int64_t rows, int workers, bool guess, bool last)
      : k_(k),
        latents_(latents),
        guess_(guess),
        last_(last),
        capacity_(interval_capacity(k, latents)),
        // With more candidates than this, scoring them one by one costs more than another screen.
        most_(guess ? latents / 24 + 4 * k + 256 : latents / 16 + 8 * k + 1024),
        rows_(rows),
        workers_(workers),
        room_(workers * rows * capacity_),
        lists_(static_cast<size_t>(workers * rows)),
        floors_(static_cast<size_t>(rows)),
        growth_(static_cast<size_t>(workers)),
        seen_(static_cast<size_t>(workers)),
        judged_(static_cast<size_t>(workers)) {}

  static int64_t bytes_per_row(int64_t k, int64_t latents, int workers) {
    return workers * (interval_capacity(k, latents) * static_cast<int64_t>(sizeof(Interval)) +
                      static_cast<int64_t>(sizeof(Intervals)));
  }

  // Before anything else is asked of rows [0, rows).
  void start(const Screen& screen, int64_t rows) {
    for (int w = 0; w < workers_; ++w) {
      growth_[static_cast<size_t>(w)] = {candidate_bytes(workers_) / workers_, most_, 0};
      seen_[static_cast<size_t>(w)] = 0;
      judged_[static_cast<size_t>(w)] = 0;
      for (int64_t row = 0; row < rows; ++row) {
        list(w, row).start(room_.get() + (w * rows_ + row) * capacity_, capacity_, !screen.row_reach(row).finite());
      }
    }
    for (int64_t row = 0; row < rows; ++row) floors_[static_cast<size_t>(row)].reset();
    most_failures_ = last_ ? rows : rows / 2;
    failures_.store(0, std::memory_order_relaxed);
    declined_.store(false, std::memory_order_relaxed);
  }

  // A worker is about to add all rows' scores of so many latents.
  void meet(int64_t latents, int worker) {
    int64_t& seen = seen_[static_cast<size_t>(worker)];
    seen += latents;
    if (!guess_) return;
    // As many of the best k as fall among these, and 4.5 standard deviations more.
    const double expected = static_cast<double>(k_) * static_cast<double>(seen) / static_cast<double>(latents_);
    growth_[static_cast<size_t>(worker)].rank = static_cast<int64_t>(expected + 4.5 * std::sqrt(expected) + 5);
  }

  // Once a worker has met a sample of the latents: how many of all of them are going to be left, as some rows show.
  // With too many, another screen is the faster one.
  void judge(int64_t rows, int worker) {
    const auto w = static_cast<size_t>(worker);
    if (!guess_ || !screening_chooses() || level().int8_latents_per_score == 0 || judged_[w] != 0 ||
        seen_[w] * 16 * workers_ < latents_)
      return;
    judged_[w] = 1;
    const double share = static_cast<double>(seen_[w]) / static_cast<double>(latents_);
    const auto rank = std::max<int64_t>(std::llround(share * static_cast<double>(k_)), 1);
    std::vector<float> middles;
    int64_t asked = 0, left = 0;
    for (int64_t row = 0; row < rows; row += ceil_div(rows, 64)) {
      const Intervals& kept = list(worker, row);
      if (kept.end() - kept.begin() < rank) continue;  // as of a row that has failed
      middles.clear();
      for (const Interval& interval : kept) middles.push_back(middle(interval));
      std::nth_element(middles.begin(), middles.begin() + (rank - 1), middles.end(), std::greater<float>());
      const float floor = middles[static_cast<size_t>(rank - 1)];
      left += std::count_if(kept.begin(), kept.end(), [=](const Interval& i) { return i.high >= floor; });
      ++asked;
    }
    const double most =
        share * static_cast<double>(asked) * static_cast<double>(latents_) / level().int8_latents_per_score;
    if (static_cast<double>(left) > most) declined_.store(true, std::memory_order_relaxed);
  }

  // Whether most rows have failed, so that the others may as well go where these will.
  bool hopeless() const { return declined() || failures_.load(std::memory_order_relaxed) > most_failures_; }
  bool declined() const { return declined_.load(std::memory_order_relaxed); }

  // What the k-th score of the row must reach for merge() to have been right.
  float floor(int64_t row) const { return guess_ ? floors_[static_cast<size_t>(row)].get() : -kInfinity; }

  // Scores of the tile that do not exceed it are of no use to the row. NaN lets everything pass; the latents' own
  // reaches decide then.
  float limit(const Screen& screen, int64_t row, const ScreenTile& tile, int64_t depth, int worker) {
    if (list(worker, row).failed()) return kInfinity;
    const float widest = reach(screen.row_reach(row), tile.widest, depth);
    const float lowest = floors_[static_cast<size_t>(row)].get();
    const bool bounded = widest < kInfinity && lowest - lowest == 0;
    return bounded ? lowest - widest : std::numeric_limits<float>::quiet_NaN();
  }

  // Asks for the end of a row's list, which has left the near caches since the last tile.
  void ask_for(int64_t row, int worker) {
    if (row < rows_) __builtin_prefetch(list(worker, row).end(), 1, 3);
  }

  // Takes in those of a row's scores that tile.hits lists.
  void add(const Screen& screen, int64_t row, const ScreenTile& tile, const float* scores, int hits, int64_t depth,
           bool magnitude, int worker) {
    Intervals& kept = list(worker, row);
    if (kept.failed()) return;
    const RowReach row_reach = screen.row_reach(row);
    Growth& growth = growth_[static_cast<size_t>(worker)];
    for (int h = 0; h < hits && !kept.failed(); ++h) {
      const int64_t j = tile.hits[h];
      const float score = magnitude ? std::fabs(scores[j]) : scores[j];
      kept.add(score, reach(row_reach, tile.reach_of(j), depth), static_cast<int32_t>(tile.first + j), k_,
               &floors_[static_cast<size_t>(row)], &growth);
    }
    if (kept.failed()) failures_.fetch_add(1, std::memory_order_relaxed);
  }

  // What all workers kept of a row and the floor does not rule out, the k with the largest lower ends first; nothing
  // where the row failed. Different rows may be merged at the same time.
  void merge(int64_t row, std::vector<Interval>* out) {
    out->clear();
    if (hopeless()) return;
    for (int w = 0; w < workers_; ++w) {
      if (list(w, row).failed()) return out->clear();
      out->insert(out->end(), list(w, row).begin(), list(w, row).end());
    }
    const auto found = static_cast<int64_t>(out->size());
    out->resize(static_cast<size_t>(cut_intervals(out->data(), found, k_, 0, &floors_[static_cast<size_t>(row)])));
    if (static_cast<int64_t>(out->size()) < k_) out->clear();
  }

 private:
  Intervals& list(int worker, int64_t row) { return lists_[static_cast<size_t>(worker * rows_ + row)]; }

  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  int64_t k_, latents_;
  bool guess_, last_;
  int64_t capacity_, most_, rows_;
  int workers_;
  Buffer<Interval> room_;
  std::vector<Intervals> lists_;
  std::vector<Floor> floors_;
  std::vector<Growth> growth_;
  std::vector<int64_t> seen_;
  std::vector<char> judged_;
  int64_t most_failures_ = 0;
  // Relaxed: hints to the other workers to stop. Nothing is read on their word but after the join of all workers.
  std::atomic<int64_t> failures_{0};
  std::atomic<bool> declined_{false};
};

}  // namespace saekernels
