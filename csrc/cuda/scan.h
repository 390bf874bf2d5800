// Prefix sums by one block: of row counts, and of the digit counts of a radix sort.
#pragma once

#include "cuda/device.h"

namespace saekernels {
namespace gpu {

constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;  // per thread and step

// out[i] = in[0] + ... + in[i - 1]; returns the whole sum to every thread. `shared`: kScanThreads numbers. In may be
// out.
template <class In, class Sum>
__device__ Sum exclusive_scan(const In* in, int64_t n, Sum* out, Sum* shared) {
  const int t = threadIdx.x;
  Sum before = 0;
  for (int64_t start = 0; start < n; start += kScanThreads * kScanItems) {
    const int64_t first = start + static_cast<int64_t>(t) * kScanItems;
    Sum items[kScanItems];
    Sum mine = 0;
    for (int i = 0; i < kScanItems; ++i) {
      items[i] = first + i < n ? static_cast<Sum>(in[first + i]) : 0;
      mine += items[i];
    }
    shared[t] = mine;
    __syncthreads();
    for (int step = 1; step < kScanThreads; step *= 2) {
      const Sum more = t >= step ? shared[t - step] : 0;
      __syncthreads();
      shared[t] += more;
      __syncthreads();
    }
    Sum at = before + shared[t] - mine;
    for (int i = 0; i < kScanItems; ++i) {
      if (first + i < n) out[first + i] = at;
      at += items[i];
    }
    before += shared[kScanThreads - 1];
    __syncthreads();
  }
  return before;
}

}  // namespace gpu
}  // namespace saekernels
