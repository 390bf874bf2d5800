// group_by_latent: entries in the order of their latents, stable, so that sums over a latent's entries run in one
// order.
//
// A radix sort from the lowest digit: per pass, each block counts the digits of its tile, one block turns the counts
// into places, and each block moves its tile there, a round of kThreads entries at a time: within a warp by matching
// digits, between warps and rounds by counts kept in shared memory. Only as many bits as the number of latents has are
// looked at.
#include "cuda/best.h"
#include "cuda/kernels.h"

namespace saekernels {
namespace gpu {
namespace {

constexpr int kRadixBits = 8;
constexpr int kRadix = 1 << kRadixBits;
constexpr int kRounds = 8;
constexpr int kScanItems = 8;  // per thread and step
constexpr int64_t kTile = static_cast<int64_t>(kThreads) * kRounds;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
static_assert(kRadix == kThreads, "a thread looks after a digit");

SK_INLINE int radix_digit(uint32_t latent, int shift) { return static_cast<int>(latent >> shift) & (kRadix - 1); }

// tile_counts: [kRadix, blocks], so that one scan over all of it gives every tile's place for every digit.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const int32_t* latents, int64_t count, int shift, int32_t* tile_counts) {
  __shared__ int histogram[kRadix];
  histogram[threadIdx.x] = 0;
  __syncthreads();
  const int64_t first = blockIdx.x * kTile;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t e = first + round * kThreads + threadIdx.x;
    if (e < count) atomicAdd(&histogram[radix_digit(static_cast<uint32_t>(latents[e]), shift)], 1);
  }
  __syncthreads();
  tile_counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = histogram[threadIdx.x];
}

// In place, by one block: how many entries come before each tile's and digit's first.
__global__ void __launch_bounds__(kThreads) places_kernel(int32_t* tile_counts, int64_t n) {
  __shared__ int32_t shared[kThreads];
  const int t = threadIdx.x;
  int32_t before = 0;
  for (int64_t start = 0; start < n; start += kThreads * kScanItems) {
    const int64_t first = start + static_cast<int64_t>(t) * kScanItems;
    int32_t items[kScanItems];
    int32_t mine = 0;
    for (int i = 0; i < kScanItems; ++i) {
      items[i] = first + i < n ? tile_counts[first + i] : 0;
      mine += items[i];
    }
    shared[t] = mine;
    __syncthreads();
    for (int step = 1; step < kThreads; step *= 2) {
      const int32_t more = t >= step ? shared[t - step] : 0;
      __syncthreads();
      shared[t] += more;
      __syncthreads();
    }
    int32_t at = before + shared[t] - mine;
    for (int i = 0; i < kScanItems; ++i) {
      if (first + i < n) tile_counts[first + i] = at;
      at += items[i];
    }
    before += shared[kThreads - 1];
    __syncthreads();
  }
}

// entries: nullptr for 0, 1, 2, ...
__global__ void __launch_bounds__(kThreads)
    move_kernel(const int32_t* latents, const int32_t* entries, int64_t count, int shift, const int32_t* places,
                int32_t* latents_out, int32_t* entries_out) {
  __shared__ int next[kRadix];             // where the next entry of a digit goes
  __shared__ int of_warp[kWarps][kRadix];  // entries of a digit in this round
  const int t = threadIdx.x;
  const int warp = t / kWarp;
  next[t] = places[static_cast<int64_t>(t) * gridDim.x + blockIdx.x];
  for (int w = 0; w < kWarps; ++w) of_warp[w][t] = 0;
  __syncthreads();
  for (int round = 0; round < kRounds; ++round) {
    const int64_t e = blockIdx.x * kTile + round * kThreads + t;
    const bool there = e < count;
    const int32_t latent = there ? latents[e] : 0;
    const int digit = there ? radix_digit(static_cast<uint32_t>(latent), shift) : kRadix;
    const unsigned same = __match_any_sync(0xffffffffu, digit);
    const int rank = __popc(same & ((1u << (t % kWarp)) - 1));
    if (there && rank == 0) of_warp[warp][digit] = __popc(same);
    __syncthreads();
    if (there) {
      int place = next[digit] + rank;
      for (int w = 0; w < warp; ++w) place += of_warp[w][digit];
      latents_out[place] = latent;
      entries_out[place] = entries == nullptr ? static_cast<int32_t>(e) : entries[e];
    }
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      next[t] += of_warp[w][t];
      of_warp[w][t] = 0;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    starts_kernel(const int32_t* sorted, int64_t count, int64_t latents, int64_t* starts) {
  const int64_t latent = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (latent > latents) return;
  int64_t low = 0;
  int64_t high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < latent) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[latent] = low;
}

int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }

int passes_for(int64_t latents) {
  int bits = 1;
  while (bits < 31 && (int64_t{1} << bits) < latents) ++bits;
  return (bits + kRadixBits - 1) / kRadixBits;
}

}  // namespace

int64_t group_scratch(int64_t count) { return 4 * (3 * count + kRadix * tiles_of(count)); }

cudaError_t group_by_latent(const int32_t* indices, int64_t count, int64_t latents, void* scratch, int32_t* order,
                            int64_t* starts, cudaStream_t stream) {
  if (count >= int64_t{1} << 31 || latents >= int64_t{1} << 31) return cudaErrorInvalidValue;
  int32_t* latent_buffers[2] = {static_cast<int32_t*>(scratch), static_cast<int32_t*>(scratch) + count};
  int32_t* spare = latent_buffers[1] + count;
  int32_t* places = spare + count;
  const int64_t tiles = tiles_of(count);
  const dim3 grid(static_cast<unsigned>(tiles));
  const int passes = passes_for(latents);
  const int32_t* from = indices;
  const int32_t* entries = nullptr;
  for (int pass = 0; pass < passes && count > 0; ++pass) {
    const int shift = pass * kRadixBits;
    int32_t* to = latent_buffers[pass % 2];
    int32_t* entries_to = (passes - 1 - pass) % 2 == 0 ? order : spare;  // the last pass writes the result
    SK_RETURN_IF_ERROR(launch(count_kernel, grid, kThreads, stream, from, count, shift, places));
    SK_RETURN_IF_ERROR(launch(places_kernel, dim3(1), kThreads, stream, places, kRadix * tiles));
    SK_RETURN_IF_ERROR(launch(move_kernel, grid, kThreads, stream, from, entries, count, shift,
                              static_cast<const int32_t*>(places), to, entries_to));
    from = to;
    entries = entries_to;
  }
  const int64_t blocks = latents / kThreads + 1;
  return launch(starts_kernel, dim3(static_cast<unsigned>(blocks)), kThreads, stream, from, count, latents, starts);
}

}  // namespace gpu
}  // namespace saekernels
