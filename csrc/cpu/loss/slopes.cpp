#include "cpu/loss/slopes.h"

#include <cmath>

#include "cpu/loss/pair_loss.h"
#include "cpu/loss/products.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

double target_logit(const Level& simd, const LossArgs& args, const Matrix& h, int64_t token, float* rows) {
  const int64_t depth = h.cols, padded = round_up(depth, kDotLanes), target = args.targets[token];
  std::fill(rows, rows + 2 * padded, 0.0f);
  simd.load_row(h, token, 0, depth, rows);
  simd.load_row(args.weight, target, 0, depth, rows + padded);
  float bias = 0;
  if (args.bias.data != nullptr) simd.load_row(args.bias, 0, target, 1, &bias);
  const double z = static_cast<double>(simd.dot(rows, rows + padded, padded)) + static_cast<double>(bias);
  const double cap = static_cast<double>(args.softcap);
  return cap > 0 ? cap * std::tanh(z / cap) : z;
}

void set_sums(SlopeLanes* lanes, int i, double lse_p, double lse_q, float kl) {
  lanes->lse_p[i] = static_cast<float>(lse_p);
  lanes->lse_q[i] = static_cast<float>(lse_q);
  lanes->gap[i] = static_cast<float>(lse_p - lse_q + static_cast<double>(kl));
}

}  // namespace

Buffer<SlopeLanes> slope_lanes(const LossArgs& args, const LossGrads& grads, const std::vector<int64_t>& ids,
                               int workers) {
  const Level& simd = level();
  const int64_t count = static_cast<int64_t>(ids.size()), groups = round_up(count, kRightStep) / kTokenLanes;
  Buffer<SlopeLanes> out(groups);
  parallel_for(groups, workers, [&](int64_t group, int) {
    SlopeLanes& lanes = out[group] = SlopeLanes{};
    Buffer<float> rows(2 * round_up(args.weight.cols, kDotLanes));
    lanes.count = static_cast<int>(std::clamp<int64_t>(count - group * kTokenLanes, 0, kTokenLanes));
    for (int i = 0; i < lanes.count; ++i) {
      const int64_t t = ids[static_cast<size_t>(group * kTokenLanes + i)];
      lanes.targets[i] = args.targets[t];
      lanes.grad_p[i] = grads.grad_ce_p[t];
      lanes.grad_q[i] = grads.grad_ce_q[t];
      lanes.grad_kl[i] = grads.grad_kl[t];
      const double z_p = target_logit(simd, args, args.h_p, t, rows.get());
      const double z_q = target_logit(simd, args, args.h_q[0], t, rows.get());
      set_sums(&lanes, i, static_cast<double>(grads.ce_p[t]) + z_p, static_cast<double>(grads.ce_q[t]) + z_q,
               grads.kl[t]);
    }
  });
  std::vector<int64_t> again, places;
  for (int64_t at = 0; at < count; ++at) {
    const SlopeLanes& lanes = out[at / kTokenLanes];
    if (std::isfinite(lanes.lse_p[at % kTokenLanes]) && std::isfinite(lanes.lse_q[at % kTokenLanes])) continue;
    again.push_back(ids[static_cast<size_t>(at)]);
    places.push_back(at);
  }
  const std::vector<PairLosses> losses = pair_losses(args, again, workers);
  for (size_t i = 0; i < again.size(); ++i) {
    const int64_t at = places[i];
    set_sums(&out[at / kTokenLanes], static_cast<int>(at % kTokenLanes), losses[i].lse_p, losses[i].lse_q,
             losses[i].kl);
  }
  return out;
}

}  // namespace saekernels
