// Cross entropy of streams and the KL divergence of each from the first, straight from hidden states: each vocabulary
// tile of W_U is packed once for all, and only running statistics of the softmax survive it.
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/encode/score_tiles.h"
#include "cpu/loss/pair_loss.h"
#include "cpu/loss/products.h"

namespace saekernels {
namespace {

constexpr int64_t kRangeColumns = 512;

class PairLoss {
 public:
  PairLoss(const LossArgs& args, int64_t live, int threads)
      : simd_(level()),
        args_(args),
        pairs_(static_cast<int64_t>(args.h_q.size())),
        depth_(args.h_p.cols),
        vocab_(args.weight.rows),
        workers_(gemm_workers((1 + pairs_) * live, vocab_, depth_, threads)),
        shape_(tile_shape(simd_, tile_columns(depth_), (1 + pairs_) * depth_)),
        ranges_(ceil_div(vocab_, kRangeColumns)),
        block_(block_rows(live, (1 + pairs_) * depth_, ranges_ * pairs_ * static_cast<int64_t>(sizeof(PairState)),
                          kStateBytes)),
        states_(ranges_ * pairs_ * block_),
        scratch_(static_cast<size_t>(workers_)) {
    packed_.reserve(static_cast<size_t>(1 + pairs_));
    for (int64_t s = 0; s <= pairs_; ++s) packed_.emplace_back(simd_, block_, depth_);
    for (TileScratch& s : scratch_) {
      s = TileScratch(shape_.columns, depth_, shape_.group, static_cast<int>(1 + pairs_));
    }
  }

  void run(const std::vector<int64_t>& live, PairLosses* out) {
    const int64_t total = static_cast<int64_t>(live.size());
    for (int64_t first = 0; first < total; first += block_) {
      const int64_t rows = std::min(block_, total - first);
      packed_[0].pack(args_.h_p, nullptr, live.data(), first, rows, workers_);
      for (int64_t pair = 0; pair < pairs_; ++pair) {
        const Matrix& stream = args_.h_q[static_cast<size_t>(pair)];
        packed_[static_cast<size_t>(1 + pair)].pack(stream, nullptr, live.data(), first, rows, workers_);
      }
      parallel_for(ranges_, workers_,
                   [&](int64_t range, int worker) { scan(range, worker, live.data() + first, rows); });
      for (int64_t at = 0; at < pairs_ * rows; ++at) {
        const int64_t pair = at / rows, row = at % rows;
        out[pair * total + first + row] = losses(pair, row, args_.targets[live[static_cast<size_t>(first + row)]]);
      }
    }
  }

 private:
  void scan(int64_t range, int worker, const int64_t* tokens, int64_t rows) const {
    const TileScratch& scratch = scratch_[static_cast<size_t>(worker)];
    PairState* states = states_.get() + range * pairs_ * block_;
    std::fill(states, states + pairs_ * block_, PairState{});
    const int64_t end = std::min(vocab_, (range + 1) * kRangeColumns);
    for (int64_t first = range * kRangeColumns; first < end; first += shape_.columns) {
      const int64_t count = std::min(shape_.columns, end - first);
      pack_tile(simd_, args_.weight, first, count, scratch.weight.get());
      load_tile(simd_, args_.bias, first, count, shape_.columns, scratch.bias.get());
      const auto visit = [&](int64_t row, float* z_p) {
        for (int64_t pair = 0; pair < pairs_; ++pair) {
          float* z = z_p;
          if (pair + 1 < pairs_) {  // softmax_tile finishes the logits where they lie
            z = scratch.extra.get();
            std::memcpy(z, z_p, static_cast<size_t>(count) * sizeof(float));
          }
          simd_.softmax_tile(z, z_p + (1 + pair) * shape_.group * shape_.columns, scratch.bias.get(),
                             static_cast<int>(count), args_.softcap, static_cast<int32_t>(first),
                             args_.targets[tokens[row]], states + pair * block_ + row);
        }
      };
      visit_tile(simd_, packed_.data(), static_cast<int>(1 + pairs_), rows, depth_, shape_, count, scratch, visit);
    }
  }

  PairLosses losses(int64_t pair, int64_t row, int64_t target) const {
    PairState s;
    for (int64_t range = 0; range < ranges_; ++range) {
      fold(states_[(range * pairs_ + pair) * block_ + row], target, range * kRangeColumns, kRangeColumns, &s);
    }
    return finish(s);
  }

  const Level& simd_;
  const LossArgs& args_;
  int64_t pairs_, depth_, vocab_;
  int workers_;
  TileShape shape_;
  int64_t ranges_, block_;
  std::vector<PackedRows> packed_;
  Buffer<PairState> states_;  // [ranges][pairs][block]
  std::vector<TileScratch> scratch_;
};

// log(sum of exp): NaN where log_softmax is NaN, that is with a NaN, with +inf, or with nothing but -inf.
double log_sum_exp(double sum, float max, bool nan) {
  if (nan || std::isinf(max)) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(max) + std::log(sum);
}

}  // namespace

void fold(const PairState& later, int64_t target, int64_t first, int64_t count, PairState* s) {
  auto join = [](float old_max, float new_max) {
    return old_max == new_max ? 1.0 : std::exp(static_cast<double>(old_max) - static_cast<double>(new_max));
  };
  const float max_p = std::max(s->max_p, later.max_p), max_q = std::max(s->max_q, later.max_q);
  const double mine_p = join(s->max_p, max_p), its_p = join(later.max_p, max_p);
  s->sum_p = s->sum_p * mine_p + later.sum_p * its_p;
  s->weighted = s->weighted * mine_p + later.weighted * its_p;
  s->sum_q = s->sum_q * join(s->max_q, max_q) + later.sum_q * join(later.max_q, max_q);
  const auto better = [](bool nan, bool later_nan, float max, float later_max) {
    return !nan && (later_nan || later_max > max);
  };
  if (better(s->nan_p, later.nan_p, s->max_p, later.max_p) || s->arg_p < 0) s->arg_p = later.arg_p;
  if (better(s->nan_q, later.nan_q, s->max_q, later.max_q) || s->arg_q < 0) s->arg_q = later.arg_q;
  s->nan_p |= later.nan_p;
  s->nan_q |= later.nan_q;
  s->max_p = max_p;
  s->max_q = max_q;
  if (target >= first && target < first + count) {
    s->target_p = later.target_p;
    s->target_q = later.target_q;
  }
}

PairLosses finish(const PairState& s) {
  PairLosses out;
  out.lse_p = log_sum_exp(s.sum_p, s.max_p, s.nan_p);
  out.lse_q = log_sum_exp(s.sum_q, s.max_q, s.nan_q);
  out.ce_p = static_cast<float>(out.lse_p - static_cast<double>(s.target_p));
  out.ce_q = static_cast<float>(out.lse_q - static_cast<double>(s.target_q));
  out.kl = static_cast<float>(s.weighted / s.sum_p - (out.lse_p - out.lse_q));
  out.agree = s.nan_p || s.nan_q ? std::numeric_limits<float>::quiet_NaN() : s.arg_p == s.arg_q ? 1.0f : 0.0f;
  return out;
}

std::vector<int64_t> counted_tokens(const LossArgs& args) {
  std::vector<int64_t> counted;
  for (int64_t t = 0; t < args.h_p.rows; ++t) {
    const int64_t target = args.targets[t];
    if (target == args.ignore_index) continue;
    if (target < 0 || target >= args.weight.rows) {
      throw std::invalid_argument("targets: must lie in [0, " + std::to_string(args.weight.rows) +
                                  ") or equal ignore_index (" + std::to_string(args.ignore_index) + "), but targets[" +
                                  std::to_string(t) + "] is " + std::to_string(target));
    }
    counted.push_back(t);
  }
  return counted;
}

std::vector<PairLosses> pair_losses(const LossArgs& args, const std::vector<int64_t>& ids, int threads) {
  std::vector<PairLosses> out(args.h_q.size() * ids.size());
  if (ids.empty()) return out;
  if (multiplies_bf16(level(), args.weight)) {
    pair_losses_bf16(args, ids, threads, out.data());
  } else {
    PairLoss(args, static_cast<int64_t>(ids.size()), threads).run(ids, out.data());
  }
  return out;
}

void linear_ce_kl(const LossArgs& args, int threads, float* ce_p, float* ce_q, float* kl, float* agree) {
  const int64_t pairs = static_cast<int64_t>(args.h_q.size()), tokens = args.h_p.rows;
  std::fill(ce_p, ce_p + tokens, 0.0f);
  for (float* result : {ce_q, kl, agree}) std::fill(result, result + pairs * tokens, 0.0f);
  const std::vector<int64_t> counted = counted_tokens(args);
  const std::vector<PairLosses> losses = pair_losses(args, counted, threads);
  for (size_t i = 0; i < losses.size(); ++i) {
    const int64_t pair = static_cast<int64_t>(i / counted.size()), t = counted[i % counted.size()];
    ce_p[t] = losses[i].ce_p;
    ce_q[pair * tokens + t] = losses[i].ce_q;
    kl[pair * tokens + t] = losses[i].kl;
    agree[pair * tokens + t] = losses[i].agree;
  }
}

}  // namespace saekernels
