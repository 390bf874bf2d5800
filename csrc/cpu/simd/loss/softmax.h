// One tile of logits of both streams folded into the running softmax statistics of a token.
#pragma once

namespace saekernels {
namespace {

struct TileMax {
  float value;
  bool has_nan;
};

// Adds the bias and the soft cap in place; positions from `count` to the end of its vector become -inf.
inline TileMax finish_logits(float* z, const float* bias, int count, float softcap) {
  const float minus_inf = -__builtin_inff();
  Vec best = Vec::broadcast(minus_inf);
  unsigned nan = 0;
  for (int j = 0; j < count; j += Vec::kWidth) {
    Vec v = Vec::load(z + j) + Vec::load(bias + j);
    if (softcap > 0) v = tanh_vec(v / Vec::broadcast(softcap)) * Vec::broadcast(softcap);
    v.store(z + j);
    if (count - j < Vec::kWidth) {
      for (int i = count; i < j + Vec::kWidth; ++i) z[i] = minus_inf;
      v = Vec::load(z + j);
    }
    nan |= mask_nan(v);
    best = max(v, best);
  }
  float lanes[Vec::kWidth];
  best.store(lanes);
  for (int i = 1; i < Vec::kWidth; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return {lanes[0], nan != 0};
}

inline int first_equal(const float* z, int count, float value) {
  for (int j = 0; j < count; j += Vec::kWidth) {
    const unsigned mask = mask_eq(Vec::load(z + j), Vec::broadcast(value));
    if (mask != 0) return j + __builtin_ctz(mask);
  }
  return 0;
}

inline int first_nan(const float* z, int count) {
  for (int j = 0; j < count; j += Vec::kWidth) {
    const unsigned mask = mask_nan(Vec::load(z + j));
    if (mask != 0) return j + __builtin_ctz(mask);
  }
  return 0;
}

// Keeps the lowest index of the maximum (NaN counts as the highest, as in torch.argmax); returns whether max moved.
inline bool update_max(const float* z, int count, TileMax tile, int32_t first_column, float* max_z, int32_t* arg,
                       bool* nan) {
  if (tile.has_nan && !*nan) {
    *nan = true;
    *arg = first_column + first_nan(z, count);
  }
  const bool moved = tile.value > *max_z;
  if (!*nan && (moved || *arg < 0)) *arg = first_column + first_equal(z, count, tile.value);
  if (moved) *max_z = tile.value;
  return moved;
}

void softmax_tile(float* z_p, float* z_q, const float* bias, int count, float softcap, int32_t first_column,
                  int64_t target, PairState* s) {
  const TileMax tile_p = finish_logits(z_p, bias, count, softcap);
  const TileMax tile_q = finish_logits(z_q, bias, count, softcap);
  const float old_p = s->max_p, old_q = s->max_q;
  if (update_max(z_p, count, tile_p, first_column, &s->max_p, &s->arg_p, &s->nan_p)) {
    const double scale = __builtin_exp(static_cast<double>(old_p) - static_cast<double>(s->max_p));
    s->sum_p *= scale;
    s->weighted *= scale;
  }
  if (update_max(z_q, count, tile_q, first_column, &s->max_q, &s->arg_q, &s->nan_q)) {
    s->sum_q *= __builtin_exp(static_cast<double>(old_q) - static_cast<double>(s->max_q));
  }
  if (target >= first_column && target < first_column + count) {
    s->target_p = z_p[target - first_column];
    s->target_q = z_q[target - first_column];
  }
  // While every logit so far is -inf there is nothing to sum, and -inf - -inf would make NaN.
  const bool skip_p = s->max_p == -__builtin_inff(), skip_q = s->max_q == -__builtin_inff();
  const Vec max_p = Vec::broadcast(s->max_p), max_q = Vec::broadcast(s->max_q), zero = Vec::zero();
  DoubleSum sum_p, sum_q, weighted;
  for (int j = 0; j < count; j += Vec::kWidth) {
    const Vec p = Vec::load(z_p + j), q = Vec::load(z_q + j);
    if (!skip_q) sum_q.add(exp_nonpositive(q - max_q));
    if (skip_p) continue;
    const Vec e = exp_nonpositive(p - max_p);
    sum_p.add(e);
    weighted.add_product(e, select_lt(zero, e, p - q, zero));  // probability 0 adds nothing, even times infinity
  }
  s->sum_p += sum_p.total();
  s->sum_q += sum_q.total();
  s->weighted += weighted.total();
}

}  // namespace
}  // namespace saekernels
