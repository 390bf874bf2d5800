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

// A code whose key is of its scaled score; the value is the score.
struct ScaledKey {
  uint64_t key;
  float score;
  bool operator>(const ScaledKey& other) const { return key > other.key; }
};

inline float value_of(const ScaledKey& code, Activation activation) {
  const float score = unsortable(sortable(code.score));  // one NaN and one zero, as of a key
  return activation == Activation::kRelu && score < 0 ? 0.0f : score;
}

inline float score_of(uint64_t key) { return key_score(key); }
inline float score_of(const ScaledKey& code) { return key_score(code.key); }
inline int32_t index_of(uint64_t key) { return key_index(key); }
inline int32_t index_of(const ScaledKey& code) { return key_index(code.key); }

// Sorts the best k of n keys and writes them as row `row`; `scratch` holds k values.
template <class Key>
void emit_row(const Level& simd, Key* keys, int64_t n, int64_t k, Activation activation, DType dtype, int64_t row,
              float* scratch, void* values, int32_t* indices) {
  sort_best(keys, n, k);
  for (int64_t i = 0; i < k; ++i) {
    indices[row * k + i] = index_of(keys[i]);
    scratch[i] = value_of(keys[i], activation);
  }
  simd.store_row(scratch, k, dtype, static_cast<char*>(values) + row * k * element_size(dtype));
}

}  // namespace saekernels
