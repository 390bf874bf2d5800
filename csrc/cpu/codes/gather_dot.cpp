// Dots of a row with the weight rows of its entries: the gradient of decode and of threshold codes towards values.
#include <algorithm>

#include "cpu/check.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

constexpr double kTermsPerThread = 1 << 18;

}  // namespace

void gather_dot(const Matrix& a, const Matrix& weight, const Entries& entries, int threads, const MutableRows& out) {
  check_offsets(entries);
  check_indices(entries.indices, entries.count, weight.rows);
  const Level& simd = level();
  const int64_t padded = round_up(a.cols, kDotLanes);
  const int workers =
      workers_for(static_cast<double>(entries.count) * static_cast<double>(a.cols), kTermsPerThread, threads);
  const int64_t share = std::clamp<int64_t>(ceil_div(entries.rows, 8 * workers), 1, 64);
  parallel_for(ceil_div(entries.rows, share), workers, [&](int64_t task, int) {
    Buffer<float> row_values(padded);
    std::fill(row_values.get(), row_values.get() + padded, 0.0f);
    for (int64_t row = task * share; row < std::min(entries.rows, (task + 1) * share); ++row) {
      const int64_t begin = entries.offsets[row], n = entries.offsets[row + 1] - begin;
      if (n == 0) continue;
      Buffer<float> dots(n);
      simd.load_row(a, row, 0, a.cols, row_values.get());
      simd.gather_dot(row_values.get(), entries.indices + begin, n, weight, dots.get());
      simd.store_row(dots.get(), n, out.dtype, static_cast<char*>(out.data) + begin * element_size(out.dtype));
    }
  });
}

}  // namespace saekernels
