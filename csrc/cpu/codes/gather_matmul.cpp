// Dots of the weight rows of a row's entries with that row of many matrices: a small product for each row, of what is
// gathered with what is packed once. A sum has the order of a tile product, which hangs on its terms alone.
//
// Working memory of a thread: (vectors + entries) * 256 + vectors * entries floats, of at most 256 vectors and 128
// entries at once.
#include <algorithm>
#include <vector>

#include "cpu/check.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

constexpr double kTermsPerThread = 1 << 20;
// What a task holds in the second cache: panels of vectors, rows of entries, each a block of depth deep, and sums.
constexpr int64_t kVectors = 256;
constexpr int64_t kEntries = 128;

// Some of the entries of a row.
struct Share {
  int64_t row, begin, count;
};

std::vector<Share> shares_of(const Entries& entries) {
  std::vector<Share> shares;
  for (int64_t row = 0; row < entries.rows; ++row) {
    const int64_t end = entries.offsets[row + 1];
    for (int64_t begin = entries.offsets[row]; begin < end; begin += kEntries) {
      shares.push_back({row, begin, std::min(kEntries, end - begin)});
    }
  }
  return shares;
}

}  // namespace

void gather_matmul(const Matrix& first, int64_t row_stride, const Matrix& weight, const Entries& entries, int threads,
                   const MutableRows& out) {
  check_offsets(entries);
  check_indices(entries.indices, entries.count, weight.rows);
  const Level& simd = level();
  const int64_t vectors = first.rows, depth = first.cols;
  if (entries.count == 0 || vectors == 0) return;
  const std::vector<Share> shares = shares_of(entries);
  const int64_t most = std::max_element(shares.begin(), shares.end(), [](const Share& a, const Share& b) {
                         return a.count < b.count;
                       })->count;
  const int64_t width = round_up(std::min(vectors, kVectors), simd.nr);
  const int64_t blocks = ceil_div(vectors, kVectors);
  const double work = static_cast<double>(entries.count) * static_cast<double>(vectors) * static_cast<double>(depth);
  const int workers = workers_for(work, kTermsPerThread, threads);
  const int64_t room = (width + most) * kDotBlock + width * most;
  Buffer<float> scratch(workers * room);
  parallel_for(static_cast<int64_t>(shares.size()) * blocks, workers, [&](int64_t task, int worker) {
    const Share& share = shares[static_cast<size_t>(task / blocks)];
    const int64_t vector = task % blocks * kVectors, count = std::min(kVectors, vectors - vector);
    float* panels = scratch.get() + worker * room;
    float* rows = panels + width * kDotBlock;
    float* sums = rows + most * kDotBlock;
    const int64_t used = ceil_div(count, simd.nr);
    for (int64_t k = 0; k < depth; k += kDotBlock) {
      const int64_t block = std::min(kDotBlock, depth - k);
      Matrix part = first;
      part.data = static_cast<const char*>(element(first, 0, k)) + share.row * row_stride * element_size(first.dtype);
      part.cols = block;
      for (int64_t p = 0; p < used; ++p) {
        const int64_t at = p * simd.nr;
        simd.pack_panel(part, vector + at, std::min<int64_t>(simd.nr, count - at), panels + at * block);
      }
      for (int64_t e = 0; e < share.count; ++e) {
        simd.load_row(weight, entries.indices[share.begin + e], k, block, rows + e * kDotBlock);
      }
      simd.rows_tile(rows, share.count, panels, used, block, sums, width, k > 0);
    }
    for (int64_t e = 0; e < share.count; ++e) {
      void* to = static_cast<char*>(row_of(out, share.begin + e)) + vector * element_size(out.dtype);
      simd.store_row(sums + e * width, count, out.dtype, to);
    }
  });
}

}  // namespace saekernels
