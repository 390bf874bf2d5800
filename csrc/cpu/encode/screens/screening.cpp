#include "cpu/encode/screens/screening.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace saekernels {
namespace {

constexpr const char* kNames[kScreenings] = {"fp32", "bf16", "int16", "int8"};
// Beyond this depth the window of int8 holds too many latents for any shape.
constexpr int64_t kInt8Depth = 2304;
// For few rows reading latents is all the work, and saves more.
constexpr int64_t kFewRows = 16, kInt8DepthOfFew = 4096;
constexpr int kLatentsPerScoreOfFew = 40;
// Beyond this one its sums might not fit 32 bits.
constexpr int64_t kInt8Sums = 1 << 16;
// Rounding latents costs more than the product of so many rows saves; to bf16 it costs less.
constexpr int64_t kRowsToRound = 96, kRowsToRoundToBf16 = 32;

int parse(const char* name) {
  if (std::strcmp(name, "auto") == 0) return -1;
  for (int kind = 0; kind < kScreenings; ++kind) {
    if (std::strcmp(name, kNames[kind]) == 0) return kind;
  }
  throw std::invalid_argument(std::string("screening '") + name + "' is unknown; need auto, fp32, bf16, int16 or int8");
}

// Relaxed wherever it is used: the number is all there is to it.
std::atomic<int>& forced() {
  static std::atomic<int> choice{[] {
    const char* name = std::getenv("SAEKERNELS_SCREEN");
    return parse(name != nullptr && *name != '\0' ? name : "auto");
  }()};
  return choice;
}

double tail(double z) { return 0.5 * std::erfc(z / std::sqrt(2.0)); }

// How many latents of a gaussian row an int8 screen leaves, whose window is `sqrt(depth)` times 0.0155 standard
// deviations of the scores wide: what rounding to 127 steps leaves of both operands. Real rows are often narrower; the
// encoder notices those that are wider.
double int8_candidates(const Workload& work) {
  const double share = static_cast<double>(work.k) / static_cast<double>(work.latents);
  double low = -8, high = 8;
  for (int step = 0; step < 40; ++step) {
    const double z = 0.5 * (low + high);
    (tail(z) > share ? low : high) = z;
  }
  const double window = 0.0155 * std::sqrt(static_cast<double>(work.depth));
  return static_cast<double>(work.latents) * tail(low - window);
}

// kFp32 where nothing is forced on this depth.
Screening forced_on(int64_t depth) {
  const auto kind = static_cast<Screening>(std::max(forced().load(std::memory_order_relaxed), 0));
  return kind == Screening::kInt8 && depth > kInt8Sums ? Screening::kFp32 : kind;
}

}  // namespace

bool screening_chooses() { return forced().load(std::memory_order_relaxed) < 0; }

void set_screening(const char* name) { forced().store(parse(name), std::memory_order_relaxed); }

const char* screening_name() {
  const int choice = forced().load(std::memory_order_relaxed);
  if (choice >= 0) return kNames[choice];
  const Level& simd = level();
  if (simd.int8_latents_per_score == 0) return kNames[static_cast<int>(simd.wide)];
  constexpr const char* kAfterInt8[kScreenings] = {"int8+fp32", "int8+bf16", "int8+int16", "int8"};
  return kAfterInt8[static_cast<int>(simd.wide)];
}

std::vector<Screening> prepared_screens(int64_t depth) {
  if (!screening_chooses()) return {forced_on(depth)};
  std::vector<Screening> kinds;
  if (level().int8_latents_per_score > 0 && depth <= kInt8DepthOfFew) kinds.push_back(Screening::kInt8);
  kinds.push_back(level().wide);
  return kinds;
}

std::vector<Screening> screens_for(const Workload& work) {
  std::vector<Screening> order;
  if (!screening_chooses()) {
    order.push_back(forced_on(work.depth));
  } else {
    const Screening wide = level().wide;
    const int64_t worth = wide == Screening::kBf16 ? kRowsToRoundToBf16 : kRowsToRound;
    if (work.prepared || work.rows >= worth) {
      const bool few = work.rows <= kFewRows;
      const int most = few ? kLatentsPerScoreOfFew : level().int8_latents_per_score;
      const bool int8 = level().int8_latents_per_score > 0 && work.k > 0;
      if (int8 && work.depth <= (few ? kInt8DepthOfFew : kInt8Depth) &&
          int8_candidates(work) * most < static_cast<double>(work.latents)) {
        order.push_back(Screening::kInt8);
      }
      order.push_back(wide);
    }
  }
  if (order.empty() || order.back() != Screening::kFp32) order.push_back(Screening::kFp32);
  return order;
}

}  // namespace saekernels
