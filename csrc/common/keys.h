// 64-bit total-order keys: one integer comparison decides "higher score, then lower index, NaN on top".
//
//   bits 63..32  the score as a sortable unsigned integer (NaN canonical and above +inf, -0.0 equal to +0.0)
//   bits 31..1   0x7fffffff - index
//   bit  0       the sign of the value, which "abs" scores lose; indices are unique, so it never decides an order
//
// torch and Triton compare signed integers, so on a GPU the top bit is flipped.
#pragma once

#include "common/half.h"

namespace saekernels {

constexpr uint32_t kSortableNan = 0xffffffffu;

SK_INLINE uint32_t sortable(float score) {
  const uint32_t bits = float_bits(score);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return kSortableNan;
  if (bits == 0x80000000u) return 0x80000000u;
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

SK_INLINE float unsortable(uint32_t key) {
  if (key == kSortableNan) return float_from_bits(0x7fc00000u);
  return float_from_bits((key & 0x80000000u) ? key & 0x7fffffffu : ~key);
}

SK_INLINE uint64_t make_key(float score, int32_t index, bool negative) {
  const uint32_t low = ((0x7fffffffu - static_cast<uint32_t>(index)) << 1) | (negative ? 1u : 0u);
  return (static_cast<uint64_t>(sortable(score)) << 32) | low;
}

SK_INLINE float key_score(uint64_t key) { return unsortable(static_cast<uint32_t>(key >> 32)); }

SK_INLINE int32_t key_index(uint64_t key) {
  return static_cast<int32_t>(0x7fffffffu - (static_cast<uint32_t>(key) >> 1));
}

SK_INLINE bool key_negative(uint64_t key) { return (key & 1u) != 0; }

SK_INLINE int64_t signed_key(uint64_t key) { return static_cast<int64_t>(key ^ 0x8000000000000000u); }

SK_INLINE uint64_t unsigned_key(int64_t key) { return static_cast<uint64_t>(key) ^ 0x8000000000000000u; }

// The value behind a key of a GPU's candidates, where bit 0 says that it is the score's negative.
SK_INLINE float key_value(uint64_t key) { return key_negative(key) ? -key_score(key) : key_score(key); }

}  // namespace saekernels
