// The losses of tokens one by one, and how statistics of parts of the vocabulary are added up to them.
//
// Statistics are kept per (vocabulary range, token) and folded in order. Ranges and tiles depend on the shape alone,
// so neither threads nor batch can change a bit.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/levels/level.h"

namespace saekernels {

constexpr int64_t kStateBytes = 16 << 20;

struct PairLosses {
  double lse_p, lse_q;  // log of the sum of exp of the logits: NaN where log_softmax is NaN
  float ce_p, ce_q, kl, agree;
};

// Adds the statistics of later words, [first, first + count), to those of earlier ones.
void fold(const PairState& later, int64_t target, int64_t first, int64_t count, PairState* s);
PairLosses finish(const PairState& s);

// [R][ids]: of each stream beside h_p, tokens ids in their order. The logits of h_p are computed once for all streams;
// a stream's losses have the same bits whatever others there are.
std::vector<PairLosses> pair_losses(const LossArgs& args, const std::vector<int64_t>& ids, int threads);
// The same from bf16 products, where multiplies_bf16.
void pair_losses_bf16(const LossArgs& args, const std::vector<int64_t>& ids, int threads, PairLosses* out);

// Tokens that are not ignored. Throws for a target outside the vocabulary.
std::vector<int64_t> counted_tokens(const LossArgs& args);

}  // namespace saekernels
