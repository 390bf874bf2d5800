// The best k of a row's keys as values and indices of the output.
#pragma once

#include "cpu/encode/candidates.h"
#include "cpu/kernels.h"
#include "cpu/levels/level.h"

namespace saekernels {

inline float value_of(uint64_t key, Activation activation) {
  const float score = key_score(key);
  if (activation == Activation::kRelu) return score < 0 ? 0.0f : score;
  return key_negative(key) ? -score : score;
}

inline uint64_t key_of(float score, int32_t index, Activation activation) {
  const bool negative = activation == Activation::kAbs && score < 0;
  return make_key(negative ? -score : score, index, negative);
}

// Sorts the best k of n keys and writes them as row `row`; `scratch` holds k values.
inline void emit_row(const Level& simd, uint64_t* keys, int64_t n, int64_t k, Activation activation, DType dtype,
                     int64_t row, float* scratch, void* values, int32_t* indices) {
  sort_best(keys, n, k);
  for (int64_t i = 0; i < k; ++i) {
    indices[row * k + i] = key_index(keys[i]);
    scratch[i] = value_of(keys[i], activation);
  }
  simd.store_row(scratch, k, dtype, static_cast<char*>(values) + row * k * element_size(dtype));
}

}  // namespace saekernels
