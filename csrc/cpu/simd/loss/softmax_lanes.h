// Tiles of logits with tokens side by side, folded into running softmax statistics: nothing crosses lanes.
//
// Inside a block of kLaneBlock words sums are fp32; blocks are added in fp64. Both orders depend on the tile alone.
#pragma once

namespace saekernels {
namespace {

constexpr int kLaneVecs = kTokenLanes / Vec::kWidth;
constexpr int kLaneBlock = 32;

// exp(x - max), where `max` has been moved off -inf: nothing but -inf sums to 0 then, and not to NaN.
inline Vec lane_reference(const float* max_z) {
  const Vec lowest = Vec::broadcast(-__builtin_inff()), value = Vec::load(max_z);
  return select_lt(lowest, value, value, Vec::zero());
}

template <bool kBias, bool kCap>
inline Vec finish_logit(Vec z, const float* bias, int word, Vec softcap) {
  if constexpr (kBias) z = z + Vec::broadcast(bias[word]);
  if constexpr (kCap) z = tanh_vec(z / softcap) * softcap;
  return z;
}

// Adds the bias and the soft cap in place. best and at [kTokenLanes]: the largest logit of each token and the first
// word that has it. Returns the lanes with a NaN.
template <bool kBias, bool kCap>
inline unsigned finish_lanes(float* z, int64_t ld, const float* bias, int count, float softcap, float* best,
                             float* at) {
  const Vec cap = Vec::broadcast(softcap);
  Vec value[kLaneVecs], word_of[kLaneVecs];
  unsigned nan = 0;
  for (int i = 0; i < kLaneVecs; ++i) {
    value[i] = Vec::broadcast(-__builtin_inff());
    word_of[i] = Vec::zero();
  }
  for (int word = 0; word < count; ++word) {
    const Vec number = Vec::broadcast(static_cast<float>(word));
#pragma GCC unroll 4
    for (int i = 0; i < kLaneVecs; ++i) {
      float* place = z + word * ld + i * Vec::kWidth;
      const Vec x = finish_logit<kBias, kCap>(Vec::load(place), bias, word, cap);
      if constexpr (kBias || kCap) x.store(place);
      nan |= mask_nan(x) << (i * Vec::kWidth);
      word_of[i] = select_lt(value[i], x, number, word_of[i]);
      value[i] = max(x, value[i]);
    }
  }
  for (int i = 0; i < kLaneVecs; ++i) {
    value[i].store(best + i * Vec::kWidth);
    word_of[i].store(at + i * Vec::kWidth);
  }
  return nan;
}

inline unsigned finish_lanes(float* z, int64_t ld, const float* bias, int count, float softcap, float* best,
                             float* at) {
  if (softcap > 0) {
    if (bias != nullptr) return finish_lanes<true, true>(z, ld, bias, count, softcap, best, at);
    return finish_lanes<false, true>(z, ld, bias, count, softcap, best, at);
  }
  if (bias != nullptr) return finish_lanes<true, false>(z, ld, bias, count, softcap, best, at);
  return finish_lanes<false, false>(z, ld, bias, count, softcap, best, at);
}

// The word of the maximum, NaN counting as the highest; lanes whose maximum moved shrink their older sums.
inline void move_max(const float* z, int64_t ld, int count, const float* best, const float* at, unsigned nan,
                     int32_t first_column, float* max_z, int32_t* arg, int32_t* has_nan, double* sum, double* other) {
  float scale[kTokenLanes];
  for (int i = 0; i < kLaneVecs; ++i) {
    const Vec before = Vec::load(max_z + i * Vec::kWidth), after = max(Vec::load(best + i * Vec::kWidth), before);
    const Vec shrink = exp_nonpositive(before - after);
    select_lt(before, after, shrink, Vec::broadcast(1.0f)).store(scale + i * Vec::kWidth);
  }
  for (int lane = 0; lane < kTokenLanes; ++lane) {
    const bool moved = best[lane] > max_z[lane];
    const bool takes = !has_nan[lane] && (moved || arg[lane] < 0);
    arg[lane] = takes ? first_column + static_cast<int32_t>(at[lane]) : arg[lane];
    max_z[lane] = moved ? best[lane] : max_z[lane];
    sum[lane] *= static_cast<double>(scale[lane]);
    if (other != nullptr) other[lane] *= static_cast<double>(scale[lane]);
  }
  for (; nan != 0; nan &= nan - 1) {
    const int lane = __builtin_ctz(nan);
    if (has_nan[lane]) continue;
    has_nan[lane] = 1;
    for (int word = count - 1; word >= 0; --word) {
      const float value = z[word * ld + lane];
      if (value != value) arg[lane] = first_column + word;
    }
  }
}

// Sums over a block of words.
inline void sum_lanes(const float* z_p, const float* z_q, int64_t ld, int count, LaneStates* s) {
  const Vec zero = Vec::zero();
  for (int i = 0; i < kLaneVecs; ++i) {
    const Vec max_p = lane_reference(s->max_p + i * Vec::kWidth), max_q = lane_reference(s->max_q + i * Vec::kWidth);
    Vec sum_p = zero, sum_q = zero, weighted = zero;
    for (int word = 0; word < count; ++word) {
      const Vec p = Vec::load(z_p + word * ld + i * Vec::kWidth), q = Vec::load(z_q + word * ld + i * Vec::kWidth);
      const Vec e = exp_nonpositive(p - max_p);
      sum_q = sum_q + exp_nonpositive(q - max_q);
      sum_p = sum_p + e;
      weighted = fma(e, select_lt(zero, e, p - q, zero), weighted);  // probability 0 adds nothing, even times infinity
    }
    float sums[3][Vec::kWidth];
    sum_p.store(sums[0]);
    sum_q.store(sums[1]);
    weighted.store(sums[2]);
    for (int lane = 0; lane < Vec::kWidth; ++lane) {
      s->sum_p[i * Vec::kWidth + lane] += static_cast<double>(sums[0][lane]);
      s->sum_q[i * Vec::kWidth + lane] += static_cast<double>(sums[1][lane]);
      s->weighted[i * Vec::kWidth + lane] += static_cast<double>(sums[2][lane]);
    }
  }
}

void softmax_lanes(float* z_p, float* z_q, int64_t ld, const float* bias, int count, float softcap,
                   int32_t first_column, const int64_t* targets, LaneStates* s) {
  float best[kTokenLanes], at[kTokenLanes];
  unsigned nan = finish_lanes(z_p, ld, bias, count, softcap, best, at);
  move_max(z_p, ld, count, best, at, nan, first_column, s->max_p, s->arg_p, s->nan_p, s->sum_p, s->weighted);
  nan = finish_lanes(z_q, ld, bias, count, softcap, best, at);
  move_max(z_q, ld, count, best, at, nan, first_column, s->max_q, s->arg_q, s->nan_q, s->sum_q, nullptr);
  for (int lane = 0; lane < kTokenLanes; ++lane) {
    if (targets[lane] < first_column || targets[lane] >= first_column + count) continue;
    s->target_p[lane] = z_p[(targets[lane] - first_column) * ld + lane];
    s->target_q[lane] = z_q[(targets[lane] - first_column) * ld + lane];
  }
  for (int word = 0; word < count; word += kLaneBlock) {
    const int block = count - word < kLaneBlock ? count - word : kLaneBlock;
    sum_lanes(z_p + word * ld, z_q + word * ld, ld, block, s);
  }
}

}  // namespace
}  // namespace saekernels
