// The losses of a bf16 head on a machine that multiplies bf16: logits are fp32 sums of exact products, in tiles whose
// rows are words and whose columns are tokens, so that W_U is read as it lies and no statistic crosses lanes.
#include <algorithm>
#include <cstring>

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
        pairs_(static_cast<int64_t>(args.h_q.size())),
        products_(make_products(simd_, args.weight)),
        depth_(products_->depth(args.weight.cols)),
        vocab_(args.weight.rows),
        words_(tile_words(depth_)),
        ranges_(ceil_div(vocab_, kRangeWords)),
        // In bf16 a token of two streams takes what one takes in fp32.
        block_(round_up(block_rows(count(), ceil_div((1 + pairs_) * depth_, int64_t{2}), ranges_ * pairs_ * kLaneBytes,
                                   kStateBytes),
                        kRightStep)),
        workers_(gemm_workers((1 + pairs_) * count(), vocab_, depth_, threads)),
        states_(ranges_ * pairs_ * block_ / kTokenLanes),
        targets_(block_) {
    for (int64_t s = 0; s <= pairs_; ++s) streams_.push_back(products_->operand(block_, depth_));
    for (int worker = 0; worker < workers_; ++worker) scratch_.emplace_back(*products_, words_, depth_, pairs_ > 1);
  }

  void run(PairLosses* out) {
    for (int64_t first = 0; first < count(); first += block_) {
      const int64_t tokens = std::min(block_, count() - first);
      load(first, tokens);
      parallel_for(ranges_, workers_, [&](int64_t range, int worker) { scan(range, tokens, scratch_[worker]); });
      const int64_t groups = ceil_div(tokens, kTokenLanes);
      parallel_for(pairs_ * groups, workers_, [&](int64_t task, int) {
        const int64_t pair = task / groups, begin = task % groups * kTokenLanes;
        for (int64_t t = begin; t < std::min(tokens, begin + kTokenLanes); ++t) {
          out[pair * count() + first + t] = losses(pair, t);
        }
      });
    }
  }

 private:
  struct Scratch {
    Scratch(const Products& products, int64_t words, int64_t depth, bool keeps)
        : weight(products.operand(words, depth)), scores(2 * words * kRightStep), bias(words) {
      if (keeps) kept = Buffer<float>(words * kRightStep);
    }
    Buffer<char> weight;
    Buffer<float> scores, bias, kept;
  };

  int64_t count() const { return static_cast<int64_t>(ids_.size()); }

  void load(int64_t first, int64_t tokens) {
    for (size_t s = 0; s < streams_.size(); ++s) {
      Buffer<char> copy;
      const Matrix rows = pick_rows(s == 0 ? args_.h_p : args_.h_q[s - 1], ids_.data() + first, tokens, &copy);
      products_->pack_all_right(rows, depth_, workers_, streams_[s]);
    }
    for (int64_t t = 0; t < block_; ++t) {
      targets_[t] = t < tokens ? args_.targets[ids_[static_cast<size_t>(first + t)]] : -1;
    }
  }

  void scan(int64_t range, int64_t tokens, const Scratch& scratch) const {
    LaneStates* states = states_.get() + range * pairs_ * block_ / kTokenLanes;
    for (int64_t group = 0; group < pairs_ * block_ / kTokenLanes; ++group) reset(states + group);
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
    const size_t bytes = static_cast<size_t>(count * kRightStep) * sizeof(float);
    for (int64_t t = 0; t < tokens; t += kRightStep) {
      const auto multiply = [&](const Buffer<char>& stream, float* z) {
        products_->multiply(scratch.weight.get(), count, products_->part(stream, t, depth_), kRightStep, depth_, z,
                            kRightStep, false);
      };
      multiply(streams_[0], z_p);
      if (pairs_ > 1) std::memcpy(scratch.kept.get(), z_p, bytes);  // softmax_lanes finishes the logits where they lie
      for (int64_t pair = 0; pair < pairs_; ++pair) {
        if (pair > 0) std::memcpy(z_p, scratch.kept.get(), bytes);
        multiply(streams_[static_cast<size_t>(1 + pair)], z_q);
        for (int64_t lane = 0; lane < std::min(kRightStep, tokens - t); lane += kTokenLanes) {
          simd_.softmax_lanes(z_p + lane, z_q + lane, kRightStep, bias, static_cast<int>(count), args_.softcap,
                              static_cast<int32_t>(first), targets_.get() + t + lane,
                              states + (pair * block_ + t + lane) / kTokenLanes);
        }
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

  PairLosses losses(int64_t pair, int64_t t) const {
    PairState whole;
    for (int64_t range = 0; range < ranges_; ++range) {
      const LaneStates& s = states_[((range * pairs_ + pair) * block_ + t) / kTokenLanes];
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
  int64_t pairs_;
  std::unique_ptr<Products> products_;
  int64_t depth_, vocab_, words_, ranges_, block_;
  int workers_;
  Buffer<LaneStates> states_;  // [ranges][pairs][block / kTokenLanes]
  Buffer<int64_t> targets_;
  std::vector<Buffer<char>> streams_;
  std::vector<Scratch> scratch_;
};

}  // namespace

void pair_losses_bf16(const LossArgs& args, const std::vector<int64_t>& ids, int threads, PairLosses* out) {
  Bf16Loss(args, ids, threads).run(out);
}

}  // namespace saekernels
