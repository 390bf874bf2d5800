// The losses of a bf16 head on a machine that multiplies bf16: logits are fp32 sums of exact products, in tiles whose
// rows are words and whose columns are tokens, so that W_U is read as it lies and no statistic crosses lanes.
#include <algorithm>

#include "cpu/encode/score_tiles.h"
#include "cpu/loss/pair_loss.h"
#include "cpu/loss/products.h"

namespace saekernels {
namespace {

constexpr int64_t kRangeWords = 1024;
constexpr int64_t kTileBytes = 768 << 10;  // of W_U, in L2
constexpr int64_t kLaneBytes = sizeof(LaneStates) / kTokenLanes;

int64_t tile_words(int64_t depth) {
  int64_t words = 128;
  while (words > 2 * kScreenPanel && words * depth * 2 > kTileBytes) words /= 2;
  return words;
}

class Bf16Loss {
 public:
  Bf16Loss(const LossArgs& args, const std::vector<int64_t>& ids, int threads)
      : simd_(level()),
        args_(args),
        ids_(ids),
        products_(make_products(simd_, args.weight)),
        depth_(products_->depth(args.weight.cols)),
        vocab_(args.weight.rows),
        words_(tile_words(depth_)),
        ranges_(ceil_div(vocab_, kRangeWords)),
        block_(round_up(block_rows(count(), depth_, ranges_ * kLaneBytes, kStateBytes), kRightStep)),
        workers_(gemm_workers(2 * count(), vocab_, depth_, threads)),
        states_(ranges_ * block_ / kTokenLanes),
        targets_(block_) {
    for (Buffer<char>& stream : streams_) stream = products_->operand(block_, depth_);
    for (int worker = 0; worker < workers_; ++worker) scratch_.emplace_back(*products_, words_, depth_);
  }

  void run(PairLosses* out) {
    for (int64_t first = 0; first < count(); first += block_) {
      const int64_t tokens = std::min(block_, count() - first);
      load(first, tokens);
      parallel_for(ranges_, workers_, [&](int64_t range, int worker) { scan(range, tokens, scratch_[worker]); });
      parallel_for(ceil_div(tokens, kTokenLanes), workers_, [&](int64_t group, int) {
        const int64_t end = std::min(tokens, (group + 1) * kTokenLanes);
        for (int64_t t = group * kTokenLanes; t < end; ++t) out[first + t] = losses(t);
      });
    }
  }

 private:
  struct Scratch {
    Scratch(const Products& products, int64_t words, int64_t depth)
        : weight(products.operand(words, depth)), scores(2 * words * kRightStep), bias(words) {}
    Buffer<char> weight;
    Buffer<float> scores, bias;
  };

  int64_t count() const { return static_cast<int64_t>(ids_.size()); }

  void load(int64_t first, int64_t tokens) {
    for (int s = 0; s < 2; ++s) {
      Buffer<char> copy;
      const Matrix rows = pick_rows(s == 0 ? args_.h_p : args_.h_q, ids_.data() + first, tokens, &copy);
      products_->pack_all_right(rows, depth_, workers_, streams_[s]);
    }
    for (int64_t t = 0; t < block_; ++t) {
      targets_[t] = t < tokens ? args_.targets[ids_[static_cast<size_t>(first + t)]] : -1;
    }
  }

  void scan(int64_t range, int64_t tokens, const Scratch& scratch) const {
    LaneStates* states = states_.get() + range * block_ / kTokenLanes;
    for (int64_t group = 0; group < ceil_div(tokens, kTokenLanes); ++group) reset(states + group);
    const int64_t end = std::min(vocab_, (range + 1) * kRangeWords);
    for (int64_t first = range * kRangeWords; first < end; first += words_) {
      tile(first, std::min(words_, end - first), tokens, scratch, states);
    }
  }

  void tile(int64_t first, int64_t count, int64_t tokens, const Scratch& scratch, LaneStates* states) const {
    products_->pack_left(rows_of(args_.weight, first, count), 0, depth_, scratch.weight.get());
    load_tile(simd_, args_.bias, first, count, count, scratch.bias.get());
    const float* bias = args_.bias.data != nullptr ? scratch.bias.get() : nullptr;
    float *z_p = scratch.scores.get(), *z_q = z_p + words_ * kRightStep;
    for (int64_t t = 0; t < tokens; t += kRightStep) {
      products_->multiply(scratch.weight.get(), count, products_->part(streams_[0], t, depth_), kRightStep, depth_, z_p,
                          kRightStep, false);
      products_->multiply(scratch.weight.get(), count, products_->part(streams_[1], t, depth_), kRightStep, depth_, z_q,
                          kRightStep, false);
      for (int64_t lane = 0; lane < std::min(kRightStep, tokens - t); lane += kTokenLanes) {
        simd_.softmax_lanes(z_p + lane, z_q + lane, kRightStep, bias, static_cast<int>(count), args_.softcap,
                            static_cast<int32_t>(first), targets_.get() + t + lane, states + (t + lane) / kTokenLanes);
      }
    }
  }

  static void reset(LaneStates* s) {
    const PairState empty;
    for (int i = 0; i < kTokenLanes; ++i) {
      s->sum_p[i] = s->sum_q[i] = s->weighted[i] = 0;
      s->max_p[i] = s->max_q[i] = empty.max_p;
      s->target_p[i] = s->target_q[i] = 0;
      s->arg_p[i] = s->arg_q[i] = empty.arg_p;
      s->nan_p[i] = s->nan_q[i] = 0;
    }
  }

  PairLosses losses(int64_t t) const {
    PairState whole;
    for (int64_t range = 0; range < ranges_; ++range) {
      const LaneStates& s = states_[(range * block_ + t) / kTokenLanes];
      const int64_t i = t % kTokenLanes;
      const PairState part{s.sum_p[i], s.sum_q[i],    s.weighted[i], s.max_p[i],      s.max_q[i],     s.arg_p[i],
                           s.arg_q[i], s.target_p[i], s.target_q[i], s.nan_p[i] != 0, s.nan_q[i] != 0};
      fold(part, targets_[t], range * kRangeWords, kRangeWords, &whole);
    }
    return finish(whole);
  }

  const Level& simd_;
  const LossArgs& args_;
  const std::vector<int64_t>& ids_;
  std::unique_ptr<Products> products_;
  int64_t depth_, vocab_, words_, ranges_, block_;
  int workers_;
  Buffer<LaneStates> states_;  // [ranges][block / kTokenLanes]
  Buffer<int64_t> targets_;
  Buffer<char> streams_[2];
  std::vector<Scratch> scratch_;
};

}  // namespace

void pair_losses_bf16(const LossArgs& args, const std::vector<int64_t>& ids, int threads, PairLosses* out) {
  Bf16Loss(args, ids, threads).run(out);
}

}  // namespace saekernels
