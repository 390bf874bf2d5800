// Candidates for the best k when scores are known only to lie in intervals. The k-th largest lower end is a floor that
// the k-th best score reaches; whoever's upper end does not reach the floor is out.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/memory.h"

namespace saekernels {

struct Interval {
  float low;
  float high;
  int32_t index;
};

constexpr int32_t kOverflowed = -1;

// Room for k, for those that the intervals cannot tell from the k-th, and for newcomers between two cuts.
inline int64_t interval_capacity(int64_t k, int64_t latents) {
  return std::min(std::max<int64_t>(2 * k, k + 256), std::max<int64_t>(latents, 1));
}

// The state of one row in one worker; `count` is kOverflowed once more candidates are needed than there is room for.
struct Intervals {
  Interval* items;
  int32_t* count;
  float* floor;

  void reset() const {
    *count = 0;
    *floor = -std::numeric_limits<float>::infinity();
  }
  bool overflowed() const { return *count == kOverflowed; }

  // False once the row has overflowed.
  bool add(float score, float reach, int32_t index, int64_t k, int64_t capacity) const {
    const float infinity = std::numeric_limits<float>::infinity();
    const bool known = score - score == 0 && reach < infinity;  // neither NaN nor infinite
    const float low = known ? score - reach : -infinity, high = known ? score + reach : infinity;
    if (high < *floor) return true;
    if (*count == capacity && !make_room(k, capacity)) return false;
    items[(*count)++] = {low, high, index};
    return true;
  }

  // Raises the floor and drops what lies below it.
  void cut(int64_t k) const {
    if (*count < k) return;
    Interval* end = items + *count;
    std::nth_element(items, items + (k - 1), end, [](const Interval& a, const Interval& b) { return a.low > b.low; });
    *floor = std::max(*floor, items[k - 1].low);
    const float limit = *floor;
    *count =
        static_cast<int32_t>(std::remove_if(items, end, [=](const Interval& i) { return i.high < limit; }) - items);
  }

 private:
  bool make_room(int64_t k, int64_t capacity) const {
    cut(k);
    // A cut costs as much as the buffer holds: one that frees too little will have to be made again at once.
    if (*count + capacity / 8 < capacity) return true;
    *count = kOverflowed;
    return false;
  }
};

}  // namespace saekernels
