// Candidates for the best k when scores are known only to lie in intervals. The k-th largest lower end that a worker
// has seen is a floor that the k-th best score reaches; whoever's upper end does not reach the floor is out.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>

#include "cpu/memory.h"

namespace saekernels {

struct Interval {
  float low;
  float high;
  int32_t index;
};

// Room to begin with: for k, for those that the intervals cannot tell from the k-th, and for newcomers between two
// cuts.
inline int64_t interval_capacity(int64_t k, int64_t latents) {
  return std::min(std::max<int64_t>(2 * k, k + 256), std::max<int64_t>(latents, 1));
}

// The floor of a row. All workers raise it and read it; a stale value is a lower one, which is right as well, and it
// says nothing of other memory: hence relaxed.
class Floor {
 public:
  void reset() { value_.store(-std::numeric_limits<float>::infinity(), std::memory_order_relaxed); }
  float get() const { return value_.load(std::memory_order_relaxed); }
  float raise(float to) {
    float now = get();
    while (now < to && !value_.compare_exchange_weak(now, to, std::memory_order_relaxed)) {
    }
    return std::max(now, to);
  }

 private:
  std::atomic<float> value_{-std::numeric_limits<float>::infinity()};
};

inline float middle(const Interval& i) {
  const float infinity = std::numeric_limits<float>::infinity();
  return i.high == infinity ? infinity : 0.5f * (i.low + i.high);
}

// Raises the floor to the k-th lower end, if there are so many, and drops what lies below it; how many are left. The k
// with the largest lower ends then come first.
//
// `rank`, unless 0, is one that the k-th score of the row has among those seen so far but for luck: the floor is then
// raised to the middle of that rank, which the row's scores must show to be right in the end, and the k-th lower end,
// which wide intervals leave far below, is not looked for.
inline int64_t cut_intervals(Interval* items, int64_t count, int64_t k, int64_t rank, Floor* floor) {
  bool guessed = false;
  if (rank > 0 && rank < count) {
    std::nth_element(items, items + (rank - 1), items + count,
                     [](const Interval& a, const Interval& b) { return middle(a) > middle(b); });
    const float guess = middle(items[rank - 1]);
    guessed = guess < std::numeric_limits<float>::infinity();
    if (guessed) floor->raise(guess);
  }
  if (!guessed && count >= k) {
    std::nth_element(items, items + (k - 1), items + count,
                     [](const Interval& a, const Interval& b) { return a.low > b.low; });
    floor->raise(items[k - 1].low);
  }
  const float limit = floor->get();
  return std::remove_if(items, items + count, [=](const Interval& i) { return i.high < limit; }) - items;
}

// What the lists of a worker may take beyond their first room, all of them in bytes and one of them in intervals; and
// the rank of cut_intervals.
struct Growth {
  int64_t bytes;
  int64_t most;
  int64_t rank;
};

// The candidates of one row in one worker.
class Intervals {
 public:
  // A row that has failed keeps none.
  void start(Interval* room, int64_t capacity, bool failed) {
    items_ = room;
    capacity_ = full_ = capacity;
    count_ = 0;
    failed_ = failed;
    own_ = {};
  }
  bool failed() const { return failed_; }
  const Interval* begin() const { return items_; }
  const Interval* end() const { return items_ + count_; }

  // Does nothing for an interval below the floor. The row fails once it needs more room than it may have.
  void add(float score, float reach, int32_t index, int64_t k, Floor* floor, Growth* growth) {
    const float infinity = std::numeric_limits<float>::infinity();
    const bool known = score - score == 0 && reach < infinity;  // neither NaN nor infinite
    const float low = known ? score - reach : -infinity, high = known ? score + reach : infinity;
    if (high < floor->get()) return;
    if (count_ == full_ && !make_room(k, floor, growth)) return;
    items_[count_++] = {low, high, index};
  }

 private:
  // Newcomers between two cuts, at least: the sooner a floor rises, the fewer there are.
  static constexpr int64_t kFewest = 64;

  bool make_room(int64_t k, Floor* floor, Growth* growth) {
    count_ = cut_intervals(items_, count_, k, growth->rank, floor);
    // A cut costs as much as the list holds: one that frees too little would have to be made again at once.
    if (count_ + capacity_ / 8 < capacity_) {
      full_ = std::min(capacity_, count_ + std::max(kFewest, count_ / 2));
      return true;
    }
    const int64_t wanted = 2 * capacity_, bytes = capacity_ * static_cast<int64_t>(sizeof(Interval));
    if (wanted > growth->most || bytes > growth->bytes) {
      failed_ = true;
      count_ = 0;
      return false;
    }
    Buffer<Interval> larger(wanted);
    std::copy(items_, items_ + count_, larger.get());
    own_ = std::move(larger);
    items_ = own_.get();
    capacity_ = full_ = wanted;
    growth->bytes -= bytes;
    return true;
  }

  Interval* items_ = nullptr;
  int64_t capacity_ = 0, full_ = 0, count_ = 0;
  bool failed_ = false;
  Buffer<Interval> own_;
};

}  // namespace saekernels
