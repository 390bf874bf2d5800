#include "cpu/encode/rescore.h"

#include "cpu/encode/score_tiles.h"
#include "cpu/stats.h"

namespace saekernels {
namespace {

constexpr int64_t kColumns = 64;  // latents of a task
constexpr double kTermsPerThread = 1 << 18;

// Pairs grouped by latent: latent i owns [starts[i], starts[i + 1]) of rows and of places in the row-major order.
struct ByLatent {
  std::vector<int64_t> starts;
  Buffer<int32_t> rows;
  Buffer<int64_t> places;
};

ByLatent group(const Pairs& pairs, int64_t latents) {
  const auto count = static_cast<int64_t>(pairs.latents.size());
  ByLatent grouped{std::vector<int64_t>(static_cast<size_t>(latents) + 1, 0), Buffer<int32_t>(count),
                   Buffer<int64_t>(count)};
  int64_t* starts = grouped.starts.data();
  for (const int32_t latent : pairs.latents) ++starts[latent + 1];
  for (int64_t i = 0; i < latents; ++i) starts[i + 1] += starts[i];
  const auto rows = static_cast<int64_t>(pairs.offsets.size()) - 1;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t p = pairs.offsets[static_cast<size_t>(row)]; p < pairs.offsets[static_cast<size_t>(row) + 1]; ++p) {
      const int64_t at = starts[pairs.latents[static_cast<size_t>(p)]]++;
      grouped.rows[at] = static_cast<int32_t>(row);
      grouped.places[at] = p;
    }
  }
  // Each start has run on to the next latent's: shift them back.
  std::copy_backward(starts, starts + latents, starts + latents + 1);
  starts[0] = 0;
  return grouped;
}

// Few latents are wanted, at places that no hardware foresees: asks for the next one while this one is used.
void prefetch_wanted(const Matrix& tile, const int64_t* starts, int64_t from, int64_t columns) {
  constexpr int64_t kMostBytes = 8 << 10;
  while (from < columns && starts[from] == starts[from + 1]) ++from;
  if (from == columns || tile.col_stride != 1) return;
  const auto* row = static_cast<const char*>(element(tile, from, 0));
  const int64_t bytes = std::min(kMostBytes, tile.cols * element_size(tile.dtype));
  for (int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(row + offset, 0, 3);
}

// Latents [first, first + columns) of the encoder, which are [from, from + columns) of `grouped`.
void score_latents(const Level& simd, const Encoder& encoder, const CentredRows& rows, const ByLatent& grouped,
                   int64_t first, int64_t from, int64_t columns, const RescoreScratch& scratch, Pairs* pairs) {
  const int64_t* starts = grouped.starts.data() + from;
  if (starts[0] == starts[columns]) return;
  const int64_t depth = encoder.weight.cols;
  const Matrix block = rows.matrix(static_cast<int64_t>(pairs->offsets.size()) - 1);
  const Matrix tile = scratch.tile.load(simd, encoder.weight, first, columns);
  load_tile(simd, encoder.bias, first, columns, columns, scratch.bias.get());
  std::fill(scratch.latent.get() + depth, scratch.latent.get() + rows.padded(), 0.0f);
  Buffer<float> dots(starts[columns] - starts[0]);
  const bool in_place = tile.dtype == DType::kFloat32 && tile.col_stride == 1 && depth == rows.padded();
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t begin = starts[j], n = starts[j + 1] - begin;
    if (n == 0) continue;
    prefetch_wanted(tile, starts, j + 1, columns);
    if (!in_place) simd.load_row(tile, j, 0, depth, scratch.latent.get());
    const float* latent = in_place ? static_cast<const float*>(element(tile, j, 0)) : scratch.latent.get();
    simd.gather_dot(latent, grouped.rows.get() + begin, n, block, dots.get());
    for (int64_t i = 0; i < n; ++i) {
      pairs->scores[static_cast<size_t>(grouped.places[begin + i])] = dots[i] + scratch.bias[j];
    }
  }
}

}  // namespace

void rescore(const Encoder& encoder, const CentredRows& rows, int threads, Pairs* pairs) {
  const auto count = static_cast<int64_t>(pairs->latents.size());
  const int64_t latents = encoder.weight.rows;
  pairs->scores.resize(static_cast<size_t>(count));
  if (count == 0) return;
  const Level& simd = level();
  const ByLatent grouped = group(*pairs, latents);
  const double work = static_cast<double>(count) * static_cast<double>(encoder.weight.cols);
  const int workers = workers_for(work, kTermsPerThread, threads);
  std::vector<RescoreScratch> scratch;
  for (int w = 0; w < workers; ++w) scratch.emplace_back(encoder.weight, rows.padded(), kColumns);
  parallel_for(ceil_div(latents, kColumns), workers, [&](int64_t task, int worker) {
    const int64_t first = task * kColumns;
    score_latents(simd, encoder, rows, grouped, first, first, std::min(kColumns, latents - first),
                  scratch[static_cast<size_t>(worker)], pairs);
  });
  saekernels::count(stats().rescored, count);
}

void rescore_tile(const Encoder& encoder, const CentredRows& rows, int64_t first, int64_t columns,
                  const RescoreScratch& scratch, Pairs* pairs) {
  pairs->scores.resize(pairs->latents.size());
  if (pairs->latents.empty()) return;
  score_latents(level(), encoder, rows, group(*pairs, columns), first, 0, columns, scratch, pairs);
  saekernels::count(stats().rescored, static_cast<int64_t>(pairs->latents.size()));
}

}  // namespace saekernels
