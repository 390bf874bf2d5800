// What the encoders did so far in this process, for people and tests who want to see a fallback happen.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/levels/level.h"

namespace saekernels {

struct Stats {
  std::atomic<int64_t> direct_rows{0};    // scored exactly at once: too few rows for a screen to pay
  std::atomic<int64_t> screened_rows{0};  // screened and certified, by one of the next four
  std::atomic<int64_t> int8_rows{0};
  std::atomic<int64_t> int16_rows{0};
  std::atomic<int64_t> bf16_rows{0};
  std::atomic<int64_t> fp32_rows{0};
  std::atomic<int64_t> rescreened_rows{0};  // more candidates than room, or a wrong guess: met another screen
  std::atomic<int64_t> rescored{0};         // scores computed exactly after a screen
  std::atomic<int64_t> overflow_rows{0};    // fallback: more candidates than room, also in fp32
  std::atomic<int64_t> unbounded_rows{0};   // fallback: NaN, infinity or a norm past all bounds in the row
  std::atomic<int64_t> fallback_rows{0};    // took any of the ways of the last three

  std::atomic<int64_t>& rows_by(Screening kind) {
    std::atomic<int64_t>* const by[kScreenings] = {&fp32_rows, &bf16_rows, &int16_rows, &int8_rows};
    return *by[static_cast<int>(kind)];
  }
};

inline Stats& stats() {
  static Stats counters;
  return counters;
}

inline void count(std::atomic<int64_t>& counter, int64_t n) { counter.fetch_add(n, std::memory_order_relaxed); }

}  // namespace saekernels
