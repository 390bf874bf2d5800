// Adam's step, shared out among threads. Without sums over rows the layout means nothing, and memory is taken as it
// lies, in pieces.
//
// Working memory: one row of fp32 for each thread, or 128 rows where columns are contiguous.
#include <algorithm>
#include <stdexcept>

#include "cpu/kernels.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

constexpr double kElementsPerThread = 1 << 15;
constexpr int64_t kPiece = 1 << 14;

// Elements [first, first + count) of memory as one row.
AdamTensors piece(const AdamTensors& at, int64_t first, int64_t count) {
  const int64_t bytes = first * element_size(at.param.dtype);
  const auto from = [=](void* data) { return static_cast<void*>(static_cast<char*>(data) + bytes); };
  return {{static_cast<const char*>(at.param.data) + bytes, 1, count, count, 1, at.param.dtype},
          static_cast<const char*>(at.grad) + bytes,
          from(at.exp_avg),
          from(at.exp_avg_sq)};
}

}  // namespace

void adam_step(const AdamStep& step, const AdamTensors& at, int threads) {
  const Level& simd = level();
  const auto& [data, rows, cols, row_stride, col_stride, dtype] = at.param;
  const int64_t elements = rows * cols;
  const int workers = workers_for(static_cast<double>(elements), kElementsPerThread, threads);
  if (!step.project && !step.unit_norm) {
    parallel_for(ceil_div(elements, kPiece), workers, [&](int64_t task, int) {
      const int64_t first = task * kPiece;
      simd.adam_step(step, piece(at, first, std::min(kPiece, elements - first)), 0, 1, nullptr);
    });
    return;
  }
  const bool by_row = col_stride == 1;
  if (!by_row && row_stride != 1) throw std::invalid_argument("param: neither rows nor columns are contiguous");
  const int64_t share = by_row ? std::clamp<int64_t>(kPiece / std::max<int64_t>(cols, 1), 1, 256) : kAdamStrip;
  parallel_for(ceil_div(rows, share), workers, [&, rows = rows, cols = cols](int64_t task, int) {
    Buffer<float> scratch(by_row ? cols : adam_scratch(cols));
    const int64_t first = task * share;
    simd.adam_step(step, at, first, std::min(share, rows - first), scratch.get());
  });
}

}  // namespace saekernels
