// What the gradient of each token's losses with respect to its logits needs, from the losses themselves.
#pragma once

#include "cpu/kernels.h"
#include "cpu/levels/level.h"
#include "cpu/memory.h"

namespace saekernels {

// Tokens ids in groups of kTokenLanes, with whole groups of no tokens up to a multiple of kRightStep. The log of the
// sum of exp is a token's cross-entropy plus the logit of its target; where those are not finite, logits are summed
// once more.
Buffer<SlopeLanes> slope_lanes(const LossArgs& args, const LossGrads& grads, const std::vector<int64_t>& ids,
                               int workers);

}  // namespace saekernels
