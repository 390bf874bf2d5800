// Top-k of scores that already exist: filter, keep the best k, sort. Few long rows are split between the workers.
#include <cstring>
#include <limits>

#include "cpu/encode/candidates.h"
#include "cpu/kernels.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

constexpr double kScoresPerThread = 1 << 16;

class TopkSelector {
 public:
  TopkSelector(const Matrix& scores, int64_t k, int threads)
      : simd_(level()),
        scores_(scores),
        k_(k),
        workers_(workers_for(static_cast<double>(scores.rows) * static_cast<double>(scores.cols), kScoresPerThread,
                             threads)),
        parts_(scores.rows >= workers_ ? 1 : ceil_div(workers_, scores.rows)),
        part_columns_(round_up(ceil_div(scores.cols, parts_), kMaxTile)),
        capacity_(candidate_capacity(k, part_columns_)) {
    parts_ = ceil_div(scores.cols, part_columns_);
  }

  void run(void* values, int32_t* indices) const {
    if (parts_ == 1) {
      const int64_t share = ceil_div(scores_.rows, 4 * workers_);
      parallel_for(ceil_div(scores_.rows, share), workers_, [&](int64_t task, int) {
        Buffer<uint64_t> keys(capacity_);
        for (int64_t row = task * share; row < std::min(scores_.rows, (task + 1) * share); ++row) {
          emit(row, keys.get(), best_of(row, 0, scores_.cols, keys.get()), values, indices);
        }
      });
      return;
    }
    for (int64_t row = 0; row < scores_.rows; ++row) {
      Buffer<uint64_t> keys(parts_ * capacity_);
      Buffer<int64_t> found(parts_);
      parallel_for(parts_, workers_, [&](int64_t part, int) {
        const int64_t end = std::min(scores_.cols, (part + 1) * part_columns_);
        found[part] = best_of(row, part * part_columns_, end, keys.get() + part * capacity_);
      });
      int64_t n = found[0];
      for (int64_t part = 1; part < parts_; ++part) {
        std::memmove(keys.get() + n, keys.get() + part * capacity_,
                     static_cast<size_t>(found[part]) * sizeof(uint64_t));
        n += found[part];
      }
      emit(row, keys.get(), n, values, indices);
    }
  }

 private:
  // Fills `keys` with candidates among columns [begin, end), the best k of them included; returns how many.
  int64_t best_of(int64_t row, int64_t begin, int64_t end, uint64_t* keys) const {
    alignas(64) float tile[kMaxTile];
    alignas(64) static constexpr float kNoBias[kMaxTile] = {};
    uint16_t hits[kMaxTile];
    int32_t count;
    float threshold;
    const Candidates best{keys, &count, &threshold};
    best.reset();
    for (int64_t first = begin; first < end; first += kMaxTile) {
      const int columns = static_cast<int>(std::min<int64_t>(kMaxTile, end - first));
      simd_.load_row(scores_, row, first, columns, tile);
      const int n = simd_.filter_above(tile, nullptr, kNoBias, columns, threshold, false, hits);
      for (int h = 0; h < n; ++h) {
        best.add(tile[hits[h]], static_cast<int32_t>(first + hits[h]), false, k_, capacity_);
      }
    }
    return count;
  }

  // The original elements, so that NaN payloads and -0.0 survive.
  void emit(int64_t row, uint64_t* keys, int64_t n, void* values, int32_t* indices) const {
    sort_best(keys, n, k_);
    const size_t size = static_cast<size_t>(element_size(scores_.dtype));
    char* out = static_cast<char*>(values) + static_cast<size_t>(row * k_) * size;
    for (int64_t i = 0; i < k_; ++i) {
      const int32_t index = key_index(keys[i]);
      indices[row * k_ + i] = index;
      std::memcpy(out + static_cast<size_t>(i) * size, element(scores_, row, index), size);
    }
  }

  const Level& simd_;
  const Matrix& scores_;
  int64_t k_;
  int workers_;
  int64_t parts_, part_columns_, capacity_;
};

}  // namespace

void topk(const Matrix& scores, int64_t k, int threads, void* values, int32_t* indices) {
  if (scores.rows == 0 || k == 0) return;
  TopkSelector(scores, k, threads).run(values, indices);
}

}  // namespace saekernels
