// The k best of n keys, by one block: radix select until few enough are left, then a bitonic sort of those in shared
// memory.
//
// Radix select looks at 11 bits at a time from the top, as AIR top-k does: a histogram of the digit among keys that
// share the prefix chosen so far, then the digit in which the k-th best lies. It ends early, after two passes as a
// rule, because what is left need not be k keys but only as many as the sort takes. Fewer keys than kSortedAtOnce are
// sorted without it: a histogram costs more than the steps that it would spare.
#pragma once

#include "common/keys.h"
#include "cuda/kernels.h"

namespace saekernels {
namespace gpu {

constexpr int kThreads = 256;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kDigitsPerThread = kDigits / kThreads;
constexpr int kSortedAtOnce = 512;
constexpr uint64_t kNoKey = 0;  // below every key: an index of 0x7fffffff with the lowest score

SK_INLINE int digit_of(uint64_t key, int shift) { return static_cast<int>(key >> shift) & (kDigits - 1); }

// Whether a key agrees with `prefix` in all but its lowest `open` bits.
SK_INLINE bool shares_prefix(uint64_t key, uint64_t prefix, int open) {
  return open >= 64 || (key >> open) == (prefix >> open);
}

// The lowest bit of the next digit; the last digit shares some bits with the one before.
SK_INLINE int next_shift(int open) { return open > kDigitBits ? open - kDigitBits : 0; }

SK_INLINE int power_of_2_from(int count) {
  int size = 2;
  while (size < count) size *= 2;
  return size;
}

struct BestShared {
  uint64_t kept[kMostKept];
  int histogram[kDigits];
  int sums[kThreads];
  int digit;
  int above;  // keys of higher digits than the one chosen, among those that share the prefix
  int count;
};

// sums[t] becomes the sum of sums[t .. kThreads).
__device__ inline void suffix_sums(int* sums) {
  const int t = threadIdx.x;
  for (int step = 1; step < kThreads; step *= 2) {
    const int more = t + step < kThreads ? sums[t + step] : 0;
    __syncthreads();
    sums[t] += more;
    __syncthreads();
  }
}

// Finds the digit that holds the wanted-th best (from 1) of the keys that share the prefix.
template <class Keys>
__device__ void choose_digit(const Keys& keys, int64_t n, uint64_t prefix, int open, int wanted, BestShared* shared) {
  const int t = threadIdx.x;
  const int shift = next_shift(open);
  for (int i = t; i < kDigits; i += kThreads) shared->histogram[i] = 0;
  __syncthreads();
  for (int64_t i = t; i < n; i += kThreads) {
    const uint64_t key = keys(i);
    if (shares_prefix(key, prefix, open)) atomicAdd(&shared->histogram[digit_of(key, shift)], 1);
  }
  __syncthreads();
  int mine = 0;
  for (int i = 0; i < kDigitsPerThread; ++i) mine += shared->histogram[t * kDigitsPerThread + i];
  shared->sums[t] = mine;
  __syncthreads();
  suffix_sums(shared->sums);
  int above = shared->sums[t] - mine;
  if (above < wanted && wanted <= shared->sums[t]) {
    for (int digit = (t + 1) * kDigitsPerThread - 1; digit >= t * kDigitsPerThread; --digit) {
      const int here = shared->histogram[digit];
      if (above + here >= wanted) {
        shared->digit = digit;
        shared->above = above;
        shared->count = here;
        break;
      }
      above += here;
    }
  }
  __syncthreads();
}

// Descending; `size` is a power of two.
__device__ inline void sort_kept(uint64_t* kept, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kThreads) {
        const int low = i / step * step * 2 + i % step;
        const int high = low + step;
        const bool descending = (low & run) == 0;
        const uint64_t a = kept[low];
        const uint64_t b = kept[high];
        if ((a < b) == descending) {
          kept[low] = b;
          kept[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// Leaves the best min(k, n) keys, best first, in shared->kept, and kNoKey behind them up to k. keys(i) for 0 <= i < n
// is called by all threads, several times for each i; k <= kMostKept. Returns after a barrier.
template <class Keys>
__device__ void best_of(const Keys& keys, int64_t n, int k, BestShared* shared) {
  uint64_t least = 0;  // keys from here on are kept
  if (n > kSortedAtOnce) {
    const int room = 2 * k > kSortedAtOnce ? (2 * k < kMostKept ? 2 * k : kMostKept) : kSortedAtOnce;
    int wanted = k < n ? k : static_cast<int>(n);
    int taken = 0;
    bool few = false;
    for (int open = 64; open > 0 && !few; open = next_shift(open)) {
      choose_digit(keys, n, least, open, wanted, shared);
      least |= static_cast<uint64_t>(shared->digit) << next_shift(open);
      taken += shared->above;
      wanted -= shared->above;
      few = taken + shared->count <= room;
      __syncthreads();
    }
  }
  if (threadIdx.x == 0) shared->count = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const uint64_t key = keys(i);
    // In which order keys arrive is forgotten by the sort.
    if (key >= least) {
      const int place = atomicAdd(&shared->count, 1);
      if (place < kMostKept) shared->kept[place] = key;  // always, unless keys repeat
    }
  }
  __syncthreads();
  const int found = shared->count < kMostKept ? shared->count : kMostKept;
  const int size = power_of_2_from(found > k ? found : k);
  for (int i = found + threadIdx.x; i < size; i += kThreads) shared->kept[i] = kNoKey;
  __syncthreads();
  sort_kept(shared->kept, size);
}

}  // namespace gpu
}  // namespace saekernels
