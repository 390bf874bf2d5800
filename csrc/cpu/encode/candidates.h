// The best k of a stream of scores, as keys, without sorting the stream: a buffer that is cut back to its best k
// whenever it is full. The k-th best so far is the threshold that the filter kernels compare with.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>

#include "common/keys.h"

namespace saekernels {

// Room for k survivors and enough newcomers that a cut, linear in the room, is paid for by as many appends.
inline int64_t candidate_capacity(int64_t k, int64_t stream_length) {
  return std::min(std::max<int64_t>(2 * k, k + 64), std::max<int64_t>(stream_length, 1));
}

// State of one row in one worker. Scores must arrive with ascending index: then a later equal score ranks below, and
// only strictly greater ones need to pass the filter.
struct Candidates {
  uint64_t* keys;
  int32_t* count;
  float* threshold;

  // NaN lets everything pass.
  void reset() const {
    *count = 0;
    *threshold = std::numeric_limits<float>::quiet_NaN();
  }

  // The threshold may have risen since the filter listed this score.
  void add(float score, int32_t index, bool negative, int64_t k, int64_t capacity) const {
    if (score <= *threshold) return;
    if (*count == capacity) cut(k);
    keys[(*count)++] = make_key(score, index, negative);
  }

  void cut(int64_t k) const {
    if (*count <= k) return;
    std::nth_element(keys, keys + (k - 1), keys + *count, std::greater<uint64_t>());
    *count = static_cast<int32_t>(k);
    const float kth = key_score(keys[k - 1]);
    // With k NaNs nothing that follows can enter; +inf leaves only further NaNs to be cut away.
    *threshold = kth != kth ? std::numeric_limits<float>::infinity() : kth;
  }
};

// Moves the best k of keys [0, n) to the front, in descending order.
template <class Key>
void sort_best(Key* keys, int64_t n, int64_t k) {
  if (n > k) std::nth_element(keys, keys + (k - 1), keys + n, std::greater<Key>());
  std::sort(keys, keys + std::min(n, k), std::greater<Key>());
}

}  // namespace saekernels
