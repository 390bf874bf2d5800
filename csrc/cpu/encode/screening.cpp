#include "cpu/encode/screening.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace saekernels {
namespace {

constexpr const char* kNames[kScreenings] = {"fp32", "bf16", "int16", "int8"};
// Beyond this depth the window of int8 holds too many latents.
constexpr int64_t kInt8Depth = 2304;
// Beyond this one its sums might not fit 32 bits.
constexpr int64_t kInt8DepthForced = 1 << 16;

int parse(const char* name) {
  if (std::strcmp(name, "auto") == 0) return -1;
  for (int kind = 0; kind < kScreenings; ++kind) {
    if (std::strcmp(name, kNames[kind]) == 0) return kind;
  }
  throw std::invalid_argument(std::string("screening '") + name + "' is unknown; need auto, fp32, bf16, int16 or int8");
}

std::atomic<int>& forced() {
  static std::atomic<int> choice{[] {
    const char* name = std::getenv("SAEKERNELS_SCREEN");
    return parse(name != nullptr && *name != '\0' ? name : "auto");
  }()};
  return choice;
}

}  // namespace

void set_screening(const char* name) { forced().store(parse(name), std::memory_order_relaxed); }

const char* screening_name() {
  const int choice = forced().load(std::memory_order_relaxed);
  if (choice >= 0) return kNames[choice];
  const Level& simd = level();
  if (!simd.narrow) return kNames[static_cast<int>(simd.wide)];
  return simd.wide == Screening::kBf16 ? "int8+bf16" : "int8+int16";
}

Screening wide_screening(int64_t depth) {
  const int choice = forced().load(std::memory_order_relaxed);
  if (choice < 0) return level().wide;
  const auto kind = static_cast<Screening>(choice);
  return kind == Screening::kInt8 && depth > kInt8DepthForced ? Screening::kFp32 : kind;
}

std::vector<Screening> screens_for(int64_t depth) {
  std::vector<Screening> order;
  const bool choose = forced().load(std::memory_order_relaxed) < 0;
  if (choose && level().narrow && depth <= kInt8Depth) order.push_back(Screening::kInt8);
  order.push_back(wide_screening(depth));
  if (order.back() != Screening::kFp32) order.push_back(Screening::kFp32);
  return order;
}

}  // namespace saekernels
