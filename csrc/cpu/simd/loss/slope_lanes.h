// The gradient of the losses with respect to logits, tokens side by side, and its rounding for the bf16 products.
//
// With p and q the distributions: d CE_p / dz_p = p - [word is the target], d KL / dz_p = p (log p - log q - KL),
// d KL / dz_q = q - p.
#pragma once

namespace saekernels {
namespace {

// z_p and z_q, finished but for the soft cap's own slope, become gradients.
template <bool kCap>
inline void slopes(float* z_p, float* z_q, int64_t ld, int count, float softcap, const SlopeLanes& t) {
  const Vec zero = Vec::zero(), one = Vec::broadcast(1.0f), cap = Vec::broadcast(softcap);
  for (int i = 0; i < kLaneVecs; ++i) {
    const int lane = i * Vec::kWidth;
    const Vec lse_p = Vec::load(t.lse_p + lane), lse_q = Vec::load(t.lse_q + lane), gap = Vec::load(t.gap + lane);
    const Vec grad_p = Vec::load(t.grad_p + lane), grad_kl = Vec::load(t.grad_kl + lane);
    const Vec grad_q = Vec::load(t.grad_q + lane) + grad_kl;
    for (int word = 0; word < count; ++word) {
      float *at_p = z_p + word * ld + lane, *at_q = z_q + word * ld + lane;
      const Vec x = Vec::load(at_p), y = Vec::load(at_q);
      const Vec p = exp_nonpositive(x - lse_p), q = exp_nonpositive(y - lse_q);
      const Vec excess = select_lt(zero, p, (x - y) - gap, zero);  // where p is 0 it counts for nothing
      Vec d_p = p * fma(grad_kl, excess, grad_p);
      Vec d_q = grad_q * q - grad_kl * p;
      if constexpr (kCap) {
        const Vec u = x / cap, v = y / cap;
        d_p = d_p * (one - u * u);
        d_q = d_q * (one - v * v);
      }
      d_p.store(at_p);
      d_q.store(at_q);
    }
  }
}

// sums[word] += both gradients of all lanes, added in halves.
inline void sum_words(const float* z_p, const float* z_q, int64_t ld, int count, float* sums) {
  for (int word = 0; word < count; ++word) {
    Vec lanes[kLaneVecs];
    for (int i = 0; i < kLaneVecs; ++i) {
      lanes[i] = Vec::load(z_p + word * ld + i * Vec::kWidth) + Vec::load(z_q + word * ld + i * Vec::kWidth);
    }
    for (int n = kLaneVecs; n > 1; n /= 2) {
      for (int i = 0; i < n / 2; ++i) lanes[i] = lanes[i] + lanes[i + n / 2];
    }
    sums[word] += fold(lanes[0]);
  }
}

void slope_lanes(float* z_p, float* z_q, int64_t ld, const float* bias, int count, float softcap, int32_t first_column,
                 const SlopeLanes& t, float* sums) {
  if (bias != nullptr || softcap > 0) {
    float best[kTokenLanes], at[kTokenLanes];
    finish_lanes(z_p, ld, bias, count, softcap, best, at);
    finish_lanes(z_q, ld, bias, count, softcap, best, at);
  }
  float target_p[kTokenLanes] = {}, target_q[kTokenLanes] = {};
  const auto place = [&](int lane) { return (t.targets[lane] - first_column) * ld + lane; };
  const auto inside = [&](int lane) {
    return lane < t.count && t.targets[lane] >= first_column && t.targets[lane] < first_column + count;
  };
  for (int lane = 0; lane < kTokenLanes; ++lane) {
    if (!inside(lane)) continue;
    const float u = softcap > 0 ? z_p[place(lane)] / softcap : 0.0f,
                v = softcap > 0 ? z_q[place(lane)] / softcap : 0.0f;
    target_p[lane] = t.grad_p[lane] * (1.0f - u * u);
    target_q[lane] = t.grad_q[lane] * (1.0f - v * v);
  }
  if (softcap > 0) {
    slopes<true>(z_p, z_q, ld, count, softcap, t);
  } else {
    slopes<false>(z_p, z_q, ld, count, softcap, t);
  }
  for (int lane = 0; lane < kTokenLanes; ++lane) {
    if (!inside(lane)) continue;
    z_p[place(lane)] -= target_p[lane];
    z_q[place(lane)] -= target_q[lane];
  }
  // No tokens: their logits are those of a state of zeros, and may be anything where the head is not finite.
  for (int word = 0; word < count && t.count < kTokenLanes; ++word) {
    for (int lane = t.count; lane < kTokenLanes; ++lane) z_p[word * ld + lane] = z_q[word * ld + lane] = 0.0f;
  }
  if (sums != nullptr) sum_words(z_p, z_q, ld, count, sums);
}

void round_slopes(const float* z, int64_t ld, int count, int padded, Bf16* pairs, Bf16* rows, int64_t panel) {
  constexpr float kNothing[kTokenLanes] = {};
  for (int word = 0; word < padded; word += 2) {
    Bf16 both[2][kTokenLanes];
    for (int half = 0; half < 2; ++half) {
      const float* from = word + half < count ? z + (word + half) * ld : kNothing;
      for (int i = 0; i < kTokenLanes; i += Vec::kWidth) Vec::load(from + i).store(both[half] + i);
      if (rows == nullptr) continue;
      const int row = word + half;
      memcpy(rows + row / kScreenPanel * panel + row % kScreenPanel * kScreenDepth, both[half], sizeof both[half]);
    }
    if (pairs == nullptr) continue;
    uint32_t words[kTokenLanes];
    for (int i = 0; i < kTokenLanes; ++i) words[i] = both[0][i].bits | static_cast<uint32_t>(both[1][i].bits) << 16;
    memcpy(pairs + word * kTokenLanes, words, sizeof words);
  }
}

void transpose_bf16(const Bf16* in, int64_t stride, Bf16* out) {
  constexpr int kPairs = kScreenDepth / 2;
  float pairs[kPairs * kScreenPanel];  // words of two bf16 each
  for (int pair = 0; pair < kPairs; ++pair) {
    const Bf16 *even = in + 2 * pair * stride, *odd = even + stride;
    uint32_t words[kScreenPanel];
    for (int i = 0; i < kScreenPanel; ++i) words[i] = even[i].bits | static_cast<uint32_t>(odd[i].bits) << 16;
    memcpy(pairs + pair * kScreenPanel, words, sizeof words);
  }
  float* to = reinterpret_cast<float*>(out);
  for (int row = 0; row < kPairs; row += 8) {
    for (int column = 0; column < kScreenPanel; column += 8) {
      transpose8(pairs + row * kScreenPanel + column, kScreenPanel, to + column * kPairs + row, kPairs);
    }
  }
}

}  // namespace
}  // namespace saekernels
