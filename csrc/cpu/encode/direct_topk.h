// Top-k by computing every score itself at once: for few rows, where reading the weights is all the work, and for rows
// that no screen can certify.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace saekernels {

// Rows `ids` of `rows`; row ids[i] is the row first + ids[i] of `out`.
void direct_topk(const Encoder& encoder, int64_t k, Activation activation, const CentredRows& rows,
                 const std::vector<int64_t>& ids, int64_t first, int threads, const TopkOut& out);

}  // namespace saekernels
