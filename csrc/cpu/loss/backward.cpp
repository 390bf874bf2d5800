// The gradient of linear_ce_kl: logits are recomputed in tiles, turned into their own gradients, and multiplied on.
//
// Slabs of kSlab words pass one after the other. Of a slab: the logits' gradients dz, in tiles; d h += dz W, in tiles
// of d x tokens; d W = dz^T h, in tiles of words x d. Each sum is one task's and walks in order, so threads change no
// bit, and dz [kSlab, tokens] is all that exists of [T, V].
#include <algorithm>
#include <cmath>

#include "cpu/encode/score_tiles.h"
#include "cpu/loss/pair_loss.h"
#include "cpu/loss/products.h"
#include "cpu/loss/slopes.h"

namespace saekernels {
namespace {

constexpr int64_t kSlab = 768;  // a multiple of kDotBlock and of kLeftStep
constexpr int64_t kWords = kLeftStep;
constexpr int64_t kTokens = 64;        // that meet kWords at a time
constexpr int64_t kSide = 192;         // of d
constexpr int64_t kTokenSide = 128;    // of tokens in d h
constexpr int64_t kTokenBlock = 2048;  // where nothing is summed over tokens

class PairGradient {
 public:
  PairGradient(const LossArgs& args, const LossGrads& grads, const std::vector<int64_t>& ids, int threads,
               const LossInputGrads& out)
      : simd_(level()),
        args_(args),
        ids_(ids),
        out_(out),
        products_(make_products(simd_, args.weight)),
        width_(args.weight.cols),
        depth_(products_->depth(width_)),
        vocab_(args.weight.rows),
        workers_(gemm_workers(4 * static_cast<int64_t>(ids.size()), vocab_, std::max<int64_t>(width_, 1), threads)),
        lanes_(slope_lanes(args, grads, ids, workers_)),
        slab_depth_(products_->depth(std::min(kSlab, vocab_))),
        left_(products_->operand(std::min(kSlab, vocab_), depth_)) {
    if (hidden()) turned_ = products_->operand(width_, slab_depth_);
    if (out.bias.data != nullptr) {
      bias_sums_ = Buffer<float>(vocab_);
      std::fill(bias_sums_.get(), bias_sums_.get() + vocab_, 0.0f);
    }
    for (int worker = 0; worker < workers_; ++worker)
      scratch_.emplace_back(std::max(2 * kWords * kTokens, kWords * kSide));
  }

  void run() {
    const int64_t all = static_cast<int64_t>(ids_.size());
    const int64_t step = out_.weight.data != nullptr ? all : std::min(all, kTokenBlock);
    for (int64_t first = 0; first < all; first += step) {
      load(first, std::min(step, all - first));
      for (int64_t word = 0; word < vocab_; word += kSlab) slab(word, std::min(kSlab, vocab_ - word));
      if (hidden()) store_hidden();
    }
    if (out_.bias.data != nullptr) simd_.store_row(bias_sums_.get(), vocab_, out_.bias.dtype, out_.bias.data);
  }

 private:
  struct Stream {
    Buffer<char> columns;      // tokens as columns, depth d
    Buffer<char> turned;       // d as columns, depth tokens; for d W
    Buffer<char> right, left;  // dz of a slab: tokens as columns, depth words; words as rows, depth tokens
    Buffer<float> sums;        // [d][padded tokens]: d h transposed
  };

  bool hidden() const { return out_.h_p.data != nullptr; }

  // Tokens ids[first, first + count).
  void load(int64_t first, int64_t count) {
    first_ = first;
    tokens_ = count;
    padded_ = round_up(count, kRightStep);
    token_depth_ = products_->depth(count);
    for (int s = 0; s < 2; ++s) {
      Stream& stream = streams_[s];
      Buffer<char> copy;
      const Matrix rows = pick_rows(s == 0 ? args_.h_p : args_.h_q[0], ids_.data() + first, count, &copy);
      stream.columns = products_->operand(padded_, depth_);
      products_->pack_all_right(rows, depth_, workers_, stream.columns);
      if (hidden()) {
        stream.right = products_->operand(padded_, slab_depth_);
        stream.sums = Buffer<float>(round_up(width_, kRightStep) * padded_);
      }
      if (out_.weight.data != nullptr) {
        stream.turned = products_->operand(width_, token_depth_);
        products_->pack_all_right(transposed(rows), token_depth_, workers_, stream.turned);
        stream.left = products_->operand(kSlab, token_depth_);
      }
    }
    if (out_.bias.data != nullptr) parts_ = Buffer<float>(ceil_div(padded_, kTokens) * kSlab);
  }

  void slab(int64_t first, int64_t count) {
    const int64_t parts = ceil_div(count, kWords), groups = ceil_div(padded_, kTokens);
    const int64_t words = products_->depth(count);
    parallel_for(parts, workers_, [&](int64_t part, int) {
      const int64_t begin = part * kWords;
      const Matrix rows = rows_of(args_.weight, first + begin, std::min(kWords, count - begin));
      products_->pack_left(rows, 0, depth_, products_->part(left_, begin, depth_));
      if (hidden()) products_->pack_left(transposed(rows), begin, words, turned_.get());
    });
    parallel_for(parts * groups, workers_, [&](int64_t task, int worker) {
      const int64_t begin = task / groups * kWords;
      slopes(first, begin, std::min(kWords, count - begin), words, task % groups, scratch_[worker].get());
    });
    for (int64_t group = 0; out_.bias.data != nullptr && group < groups; ++group) {
      for (int64_t word = 0; word < count; ++word) bias_sums_[first + word] += parts_[group * kSlab + word];
    }
    if (hidden()) add_hidden(words, first > 0);
    if (out_.weight.data != nullptr) {
      const int64_t sides = ceil_div(width_, kSide);
      parallel_for(parts * sides, workers_, [&](int64_t task, int worker) {
        const int64_t begin = task / sides * kWords;
        store_weight(first, begin, std::min(kWords, count - begin), task % sides * kSide, scratch_[worker].get());
      });
    }
  }

  // dz of words [slab + begin, ... + count) and one group of tokens.
  void slopes(int64_t slab, int64_t begin, int64_t count, int64_t words, int64_t group, float* z) {
    const int64_t first = group * kTokens, columns = std::min(kTokens, padded_ - first);
    float* tiles[] = {z, z + kWords * kTokens};
    for (int s = 0; s < 2; ++s) {
      products_->multiply(products_->part(left_, begin, depth_), count,
                          products_->part(streams_[s].columns, first, depth_), columns, depth_, tiles[s], kTokens,
                          false);
    }
    float bias[kWords];
    load_tile(simd_, args_.bias, slab + begin, count, count, bias);
    float* sums = out_.bias.data != nullptr ? parts_.get() + group * kSlab + begin : nullptr;
    if (sums != nullptr) std::fill(sums, sums + count, 0.0f);
    for (int64_t lane = 0; lane < columns; lane += kTokenLanes) {
      simd_.slope_lanes(tiles[0] + lane, tiles[1] + lane, kTokens, args_.bias.data != nullptr ? bias : nullptr,
                        static_cast<int>(count), args_.softcap, static_cast<int32_t>(slab + begin),
                        lanes_[(first_ + first + lane) / kTokenLanes], sums);
    }
    for (int s = 0; s < 2; ++s) {
      Stream& stream = streams_[s];
      products_->pack_slopes(tiles[s], kTokens, count, columns,
                             hidden() ? products_->part(stream.right, first, words) : nullptr, begin, words,
                             out_.weight.data != nullptr ? products_->part(stream.left, begin, token_depth_) : nullptr,
                             first, token_depth_);
    }
  }

  void add_hidden(int64_t words, bool add) {
    const int64_t sides = ceil_div(width_, kSide), groups = ceil_div(padded_, kTokenSide);
    parallel_for(2 * sides * groups, workers_, [&](int64_t task, int) {
      const Stream& stream = streams_[task / (sides * groups)];
      const int64_t row = task / groups % sides * kSide, token = task % groups * kTokenSide;
      products_->multiply(products_->part(turned_, row, words), std::min(kSide, width_ - row),
                          products_->part(stream.right, token, words), std::min(kTokenSide, padded_ - token), words,
                          stream.sums.get() + row * padded_ + token, padded_, add);
    });
  }

  void store_weight(int64_t slab, int64_t begin, int64_t count, int64_t column, float* tile) {
    const int64_t columns = std::min(kSide, width_ - column);
    for (int s = 0; s < 2; ++s) {
      products_->multiply(products_->part(streams_[s].left, begin, token_depth_), count,
                          products_->part(streams_[s].turned, column, token_depth_), round_up(columns, kRightStep),
                          token_depth_, tile, kSide, s > 0);
    }
    for (int64_t word = 0; word < count; ++word) {
      char* row = static_cast<char*>(row_of(out_.weight, slab + begin + word));
      simd_.store_row(tile + word * kSide, columns, out_.weight.dtype, row + column * element_size(out_.weight.dtype));
    }
  }

  void store_hidden() {
    parallel_for(ceil_div(tokens_, kTokenLanes), workers_, [&](int64_t group, int) {
      Buffer<float> row(width_);
      for (int64_t t = group * kTokenLanes; t < std::min(tokens_, (group + 1) * kTokenLanes); ++t) {
        for (int s = 0; s < 2; ++s) {
          const MutableRows& to = s == 0 ? out_.h_p : out_.h_q;
          for (int64_t k = 0; k < width_; ++k) row[k] = streams_[s].sums[k * padded_ + t];
          simd_.store_row(row.get(), width_, to.dtype, row_of(to, ids_[static_cast<size_t>(first_ + t)]));
        }
      }
    });
  }

  const Level& simd_;
  const LossArgs& args_;
  const std::vector<int64_t>& ids_;
  const LossInputGrads& out_;
  std::unique_ptr<Products> products_;
  int64_t width_, depth_, vocab_;
  int workers_;
  Buffer<SlopeLanes> lanes_;
  int64_t slab_depth_;
  Buffer<char> left_, turned_;  // W_U of a slab: words as rows; d as rows, depth words
  Buffer<float> bias_sums_, parts_;
  std::vector<Buffer<float>> scratch_;
  int64_t first_ = 0, tokens_ = 0, padded_ = 0, token_depth_ = 0;
  Stream streams_[2];
};

}  // namespace

void linear_ce_kl_backward(const LossArgs& args, const LossGrads& grads, int threads, const LossInputGrads& out) {
  const std::vector<int64_t> ids = counted_tokens(args);
  if (!ids.empty()) PairGradient(args, grads, ids, threads, out).run();
}

}  // namespace saekernels
