// Exact scores of (row, latent) pairs, latent by latent: a latent's weights are read once for all its rows.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace saekernels {

// Pairs of a block of rows, row by row: row r owns [offsets[r], offsets[r + 1]) of latents and scores.
struct Pairs {
  std::vector<int64_t> offsets;
  std::vector<int32_t> latents;
  std::vector<float> scores;
};

struct RescoreScratch {
  RescoreScratch(const Matrix& weight, int64_t padded, int64_t columns)
      : tile(weight, columns), latent(padded), bias(columns) {}
  LatentTile tile;
  Buffer<float> latent, bias;
};

// Fills pairs->scores with <row, latent> + bias.
void rescore(const Encoder& encoder, const CentredRows& rows, int threads, Pairs* pairs);

// The same in the calling thread for pairs within one tile of latents: pairs->latents count from `first`.
void rescore_tile(const Encoder& encoder, const CentredRows& rows, int64_t first, int64_t columns,
                  const RescoreScratch& scratch, Pairs* pairs);

}  // namespace saekernels
