// Top-k by computing every score itself at once: for few rows, where reading the weights is all the work, and for rows
// that no screen can certify.
#pragma once

#include <vector>

#include "cpu/kernels.h"

namespace saekernels {

// Rows `ids` of x, and of `out`.
void direct_topk(const Encoder& encoder, int64_t k, Activation activation, const std::vector<int64_t>& ids, int threads,
                 const TopkOut& out);

}  // namespace saekernels
