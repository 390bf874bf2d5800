// The GEMM that the encoders and the loss share. It walks the latents tile by tile, and hands each row's scores of a
// tile to a callback while they are hot; nothing of size T x F exists.
//
// Rows are packed once per row block, in panels of `mr` rows. A task packs a tile of latents into a buffer that stays
// in L2 and multiplies all rows of the block with it, a few panels at a time, so that the score tile stays in L1/L2.
#pragma once

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/levels/level.h"
#include "cpu/memory.h"
#include "cpu/threads/parallel.h"

namespace saekernels {

constexpr int64_t kWeightTileBytes = 384 << 10;  // packed latents of one tile, in L2
constexpr int64_t kRowGroupBytes = 96 << 10;     // packed rows that meet a tile at a time, beside it in L2
constexpr int64_t kRowBlockBytes = 8 << 20;      // packed rows of one block, in L3
constexpr double kFlopsPerThread = 2e6;

// For the candidates of a row block: every worker has buffers for every row.
inline int64_t candidate_bytes(int workers) { return std::max<int64_t>(16 << 20, workers * (int64_t{4} << 20)); }

inline int gemm_workers(int64_t rows, int64_t latents, int64_t depth, int threads) {
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(latents) * static_cast<double>(depth);
  return workers_for(flops, kFlopsPerThread, threads);
}

// Columns of a tile for dots of `depth` terms: a power of two that depends on nothing else.
inline int64_t tile_columns(int64_t depth) {
  int64_t columns = 256;
  while (columns > kMaxPanel && columns * depth * 4 > kWeightTileBytes) columns /= 2;
  return columns;
}

// Rows per block such that packed rows and `bytes_per_row` of the caller's own buffers stay within their budgets.
inline int64_t block_rows(int64_t rows, int64_t depth, int64_t bytes_per_row, int64_t byte_budget) {
  const int64_t by_pack = kRowBlockBytes / std::max<int64_t>(4 * depth, 1);
  const int64_t by_caller = byte_budget / std::max<int64_t>(bytes_per_row, 1);
  return std::clamp<int64_t>(std::min(by_pack, by_caller), 1, std::max<int64_t>(rows, 1));
}

// Packed fp32 rows of x (less pre_bias, if there is one) from `first` on; `ids` picks rows where given.
class PackedRows {
 public:
  PackedRows(const Level& simd, int64_t capacity, int64_t depth)
      : simd_(simd), depth_(depth), data_(round_up(capacity, simd.mr) * depth) {}

  void pack(const Matrix& x, const float* pre_bias, const int64_t* ids, int64_t first, int64_t rows, int threads) {
    const int64_t mr = simd_.mr;
    parallel_for(ceil_div(rows, mr), threads, [&](int64_t panel, int) {
      Buffer<float> row(depth_);
      float* out = data_.get() + panel * mr * depth_;
      for (int64_t r = 0; r < mr; ++r) {
        const int64_t at = panel * mr + r;
        if (at >= rows) break;  // the kernels never look at the missing rows of the last panel
        simd_.load_row(x, ids != nullptr ? ids[first + at] : first + at, 0, depth_, row.get());
        for (int64_t k = 0; k < depth_; ++k) out[k * mr + r] = pre_bias != nullptr ? row[k] - pre_bias[k] : row[k];
      }
    });
  }

  const float* panel_of(int64_t row) const { return data_.get() + row * depth_; }

 private:
  const Level& simd_;
  int64_t depth_;
  Buffer<float> data_;
};

// Scratch of one worker: a packed tile of latents, score tiles for each stream, and two tile-wide vectors.
struct TileScratch {
  TileScratch() = default;
  TileScratch(int64_t columns, int64_t depth, int64_t group, int streams)
      : weight(columns * depth), scores(streams * group * columns), bias(columns), extra(columns), hits(columns) {}
  Buffer<float> weight, scores, bias, extra;
  Buffer<uint16_t> hits;
};

struct TileShape {
  int64_t columns;  // of a full tile
  int64_t group;    // rows that meet a tile at a time
};

inline TileShape tile_shape(const Level& simd, int64_t columns, int64_t depth) {
  const int64_t panels = std::max<int64_t>(kRowGroupBytes / std::max<int64_t>(4 * depth * simd.mr, 1), 1);
  return {columns, std::min<int64_t>(panels, 32) * simd.mr};
}

// Packs latents [first, first + count) as a tile; positions past count are zero.
inline void pack_tile(const Level& simd, const Matrix& weight, int64_t first, int64_t count, float* out) {
  for (int64_t j = 0; j < count; j += simd.nr) {
    simd.pack_panel(weight, first + j, std::min<int64_t>(simd.nr, count - j), out + j * weight.cols);
  }
}

// fp32 copy of a whole vector; empty for an absent one.
inline Buffer<float> load_vector(const Level& simd, const Matrix& vector) {
  if (vector.data == nullptr) return {};
  Buffer<float> out(vector.cols);
  simd.load_row(vector, 0, 0, vector.cols, out.get());
  return out;
}

// Loads a tile of a bias-like vector; zeros stand for an absent one and fill the padding.
inline void load_tile(const Level& simd, const Matrix& vector, int64_t first, int64_t count, int64_t padded,
                      float* out) {
  if (vector.data != nullptr) simd.load_row(vector, 0, first, count, out);
  std::fill(out + (vector.data != nullptr ? count : 0), out + padded, 0.0f);
}

// visit(row, scores): calls it for each of `rows` packed rows in ascending order with the row's raw dots of the tile;
// with two streams, scores of the second lie `*_stride` floats behind those of the first.
template <class Visit>
void visit_tile(const Level& simd, const PackedRows* streams, int stream_count, int64_t rows, int64_t depth,
                const TileShape& shape, int64_t count, const TileScratch& scratch, Visit&& visit) {
  const int64_t panels = ceil_div(count, simd.nr);
  const int64_t stream_stride = shape.group * shape.columns;
  for (int64_t row = 0; row < rows; row += shape.group) {
    const int64_t group = std::min(shape.group, rows - row);
    for (int s = 0; s < stream_count; ++s) {
      simd.gemm_tile(streams[s].panel_of(row), group, scratch.weight.get(), panels, depth,
                     scratch.scores.get() + s * stream_stride, shape.columns, false);
    }
    for (int64_t r = 0; r < group; ++r) visit(row + r, scratch.scores.get() + r * shape.columns);
  }
}

}  // namespace saekernels
