// The epilogues of the encoders: add the bias, list what passes. Misses are the rule, so the loop only branches on a
// non-zero mask.
#pragma once

namespace saekernels {
namespace {

inline unsigned keep_first(unsigned mask, int left) { return left >= Vec::kWidth ? mask : mask & ((1u << left) - 1u); }

inline int append_hits(unsigned mask, int base, uint16_t* hits, int n) {
  while (mask != 0) {
    hits[n++] = static_cast<uint16_t>(base + __builtin_ctz(mask));
    mask &= mask - 1;
  }
  return n;
}

inline Vec finished(float* scores, const float* factors, const float* bias, int j) {
  const Vec dot = Vec::load(scores + j);
  const Vec score = (factors != nullptr ? dot * Vec::load(factors + j) : dot) + Vec::load(bias + j);
  score.store(scores + j);
  return score;
}

int filter_above(float* scores, const float* factors, const float* bias, int count, float threshold, bool magnitude,
                 uint16_t* hits) {
  const Vec limit = Vec::broadcast(threshold);
  int n = 0;
  for (int j = 0; j < count; j += Vec::kWidth) {
    const Vec score = finished(scores, factors, bias, j);
    const unsigned mask = mask_not_le(magnitude ? abs(score) : score, limit);
    if (__builtin_expect(mask != 0, 0)) n = append_hits(keep_first(mask, count - j), j, hits, n);
  }
  return n;
}

int filter_each(float* scores, const float* factors, const float* bias, const float* thresholds, float slack, int count,
                uint16_t* hits) {
  const Vec off = Vec::broadcast(slack);
  int n = 0;
  for (int j = 0; j < count; j += Vec::kWidth) {
    const Vec score = finished(scores, factors, bias, j);
    const unsigned mask = mask_not_le(score, Vec::load(thresholds + j) - off);
    if (__builtin_expect(mask != 0, 0)) n = append_hits(keep_first(mask, count - j), j, hits, n);
  }
  return n;
}

}  // namespace
}  // namespace saekernels
