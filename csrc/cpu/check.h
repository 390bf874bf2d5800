// Checks that only native code can make cheaply. A wrong index would read or write foreign memory.
#pragma once

#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace saekernels {

inline void check_offsets(const Entries& entries) {
  const int64_t* offsets = entries.offsets;
  if (offsets[0] != 0 || offsets[entries.rows] != entries.count) {
    throw std::invalid_argument("offsets: must begin with 0 and end with the number of entries (" +
                                std::to_string(entries.count) + "), got " + std::to_string(offsets[0]) + " and " +
                                std::to_string(offsets[entries.rows]));
  }
  for (int64_t t = 0; t < entries.rows; ++t) {
    if (offsets[t + 1] < offsets[t]) {
      throw std::invalid_argument("offsets: must not decrease, but offsets[" + std::to_string(t + 1) +
                                  "] = " + std::to_string(offsets[t + 1]) + " follows " + std::to_string(offsets[t]));
    }
  }
}

inline void check_indices(const int32_t* indices, int64_t count, int64_t limit) {
  // One pass without branches; only a failure looks for the culprit.
  uint32_t highest = 0;
  for (int64_t e = 0; e < count; ++e) {
    const uint32_t value = static_cast<uint32_t>(indices[e]);
    highest = value > highest ? value : highest;
  }
  if (count == 0 || static_cast<int64_t>(highest) < limit) return;
  for (int64_t e = 0; e < count; ++e) {
    if (indices[e] < 0 || indices[e] >= limit) {
      throw std::invalid_argument("indices: must lie in [0, " + std::to_string(limit) + "), but entry " +
                                  std::to_string(e) + " is " + std::to_string(indices[e]));
    }
  }
}

}  // namespace saekernels
