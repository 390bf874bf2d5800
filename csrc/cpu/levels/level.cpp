#include "cpu/levels/level.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(SK_HAVE_X86_LEVELS)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace saekernels {
namespace {

#if defined(SK_HAVE_X86_LEVELS)
// Not every compiler's __builtin_cpu_supports knows this name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

#if defined(SK_HAVE_BF16_LEVELS)
bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 5)) != 0;
}

// The processor has tiles with bf16 and int8 products, the system saves them, and gives this process leave to use them.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kBf16 = 1u << 22, kSavedBySystem = 1u << 27;
  constexpr unsigned kTileState = 3u << 17;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (~d & (kTile | kInt8 | kBf16)) != 0) return false;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kSavedBySystem) == 0) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(SK_HAVE_ARM_LEVELS)
// What a core has beside NEON. Bits of Linux's asm/hwcap.h, which older systems lack.
struct ArmFeatures {
#if defined(__linux__)
  bool dot = (getauxval(AT_HWCAP) & (1ul << 20)) != 0;
  bool int8 = (getauxval(AT_HWCAP2) & (1ul << 13)) != 0;
  bool bf16 = (getauxval(AT_HWCAP2) & (1ul << 14)) != 0;
#elif defined(__APPLE__)
  static bool has(const char* name) {
    int32_t value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  }
  bool dot = has("hw.optional.arm.FEAT_DotProd");
  bool int8 = has("hw.optional.arm.FEAT_I8MM");
  bool bf16 = has("hw.optional.arm.FEAT_BF16");
#else
  bool dot = false, int8 = false, bf16 = false;
#endif
};
#endif

std::vector<const Level*> find_supported() {
  std::vector<const Level*> found;
#if defined(SK_HAVE_X86_LEVELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#if defined(SK_HAVE_BF16_LEVELS)
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && has_amx()) found.push_back(&kAmxLevel);
  if (vnni && has_avx512_bf16()) found.push_back(&kAvx512Bf16Level);
  if (vnni) found.push_back(&kAvx512VnniLevel);
#endif
  if (avx512) found.push_back(&kAvx512Level);
  if (avx2) found.push_back(&kAvx2Level);
#endif
#if defined(SK_HAVE_ARM_LEVELS)
  const ArmFeatures arm;
  if (arm.int8 && arm.bf16) found.push_back(&kNeonBf16Level);
  if (arm.dot) found.push_back(&kNeonDotLevel);
  found.push_back(&kNeonLevel);
#endif
  found.push_back(&kPortableLevel);
  return found;
}

const std::vector<const Level*>& supported() {
  static const std::vector<const Level*> levels = find_supported();
  return levels;
}

const Level* find_level(const char* name) {
  if (std::strcmp(name, "auto") == 0) return supported().front();
  for (const Level* candidate : supported()) {
    if (std::strcmp(candidate->name, name) == 0) return candidate;
  }
  throw std::invalid_argument(std::string("SIMD level '") + name + "' is not available here; available: auto," +
                              supported_levels());
}

std::atomic<const Level*>& current() {
  static std::atomic<const Level*> chosen{[] {
    const char* forced = std::getenv("SAEKERNELS_SIMD");
    return find_level(forced != nullptr && *forced != '\0' ? forced : "auto");
  }()};
  return chosen;
}

}  // namespace

// Relaxed, as set_level: levels are constants, which no thread waits for another to fill.
const Level& level() { return *current().load(std::memory_order_relaxed); }

void set_level(const char* name) { set_level(*find_level(name)); }

void set_level(const Level& wanted) { current().store(&wanted, std::memory_order_relaxed); }

const char* supported_levels() {
  static const std::string names = [] {
    std::string joined;
    for (const Level* candidate : supported()) joined += (joined.empty() ? "" : ",") + std::string(candidate->name);
    return joined;
  }();
  return names.c_str();
}

int64_t second_cache_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const int64_t told = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (told > 0) return std::clamp<int64_t>(told, 512 << 10, 2 << 20);
#endif
    return int64_t{1} << 20;
  }();
  return bytes;
}

}  // namespace saekernels
