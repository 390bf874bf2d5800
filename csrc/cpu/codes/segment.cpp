// Sums of entries by latent: the weight and bias gradients. A stable counting sort puts the entries of a latent
// together in ascending order; workers own latents, so there are no atomics and the order of every sum is fixed.
//
// Working memory: 8 bytes per entry and 8 per latent.
#include <algorithm>
#include <vector>

#include "cpu/check.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

constexpr double kTermsPerThread = 1 << 18;

// Entries sorted by latent: latent i owns [starts[i], starts[i + 1]).
struct SortedEntries {
  std::vector<int64_t> starts;
  Buffer<float> weights;
  Buffer<int32_t> rows;
};

SortedEntries sort_by_latent(const Entries& codes, int64_t segments, const Level& simd) {
  SortedEntries sorted{std::vector<int64_t>(static_cast<size_t>(segments) + 1, 0), Buffer<float>(codes.count),
                       Buffer<int32_t>(codes.count)};
  int64_t* starts = sorted.starts.data();
  for (int64_t e = 0; e < codes.count; ++e) ++starts[codes.indices[e] + 1];
  for (int64_t i = 0; i < segments; ++i) starts[i + 1] += starts[i];
  const Matrix values{codes.values, 1, codes.count, codes.count, 1, codes.dtype};
  Buffer<float> row_values(codes.count);
  simd.load_row(values, 0, 0, codes.count, row_values.get());
  for (int64_t row = 0; row < codes.rows; ++row) {
    for (int64_t e = codes.offsets[row]; e < codes.offsets[row + 1]; ++e) {
      const int64_t at = starts[codes.indices[e]]++;
      sorted.weights[at] = row_values[e];
      sorted.rows[at] = static_cast<int32_t>(row);
    }
  }
  // Each start has run on to the next latent's: shift them back.
  std::copy_backward(starts, starts + segments, starts + segments + 1);
  starts[0] = 0;
  return sorted;
}

}  // namespace

void segment_outer(const Entries& codes, const Matrix& a, int64_t segments, int threads, const MutableRows& out) {
  check_offsets(codes);
  check_indices(codes.indices, codes.count, segments);
  if (codes.rows > INT32_MAX) throw std::invalid_argument("offsets: more than 2^31 - 1 rows in one call");
  const Level& simd = level();
  const SortedEntries sorted = sort_by_latent(codes, segments, simd);
  const int64_t work = (codes.count + segments) * a.cols;
  const int workers = workers_for(static_cast<double>(work), kTermsPerThread, threads);
  const int64_t share = std::clamp<int64_t>(ceil_div(segments, 16 * workers), 1, 256);
  parallel_for(ceil_div(segments, share), workers, [&](int64_t task, int) {
    Buffer<float> sum(a.cols);
    const int64_t end = std::min(segments, (task + 1) * share);
    const int64_t last = sorted.starts[static_cast<size_t>(end)];
    for (int64_t i = task * share; i < end; ++i) {
      const int64_t begin = sorted.starts[static_cast<size_t>(i)];
      const int64_t n = sorted.starts[static_cast<size_t>(i) + 1] - begin;
      simd.gather_sum(sum.get(), sorted.weights.get() + begin, sorted.rows.get() + begin, n, last - (begin + n), a);
      simd.store_row(sum.get(), a.cols, out.dtype, row_of(out, i));
    }
  });
}

void segment_sum(const Entries& codes, int64_t segments, void* out) {
  check_indices(codes.indices, codes.count, segments);
  const Level& simd = level();
  Buffer<float> sums(segments);
  std::fill(sums.get(), sums.get() + segments, 0.0f);
  const Matrix values{codes.values, 1, codes.count, codes.count, 1, codes.dtype};
  alignas(64) float chunk[kMaxTile];
  for (int64_t first = 0; first < codes.count; first += kMaxTile) {
    const int64_t n = std::min<int64_t>(kMaxTile, codes.count - first);
    simd.load_row(values, 0, first, n, chunk);
    for (int64_t e = 0; e < n; ++e) sums[codes.indices[first + e]] += chunk[e];
  }
  simd.store_row(sums.get(), segments, codes.dtype, out);
}

}  // namespace saekernels
