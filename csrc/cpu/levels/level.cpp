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
bool has(unsigned bits, unsigned needed) { return (bits & needed) == needed; }

// What the processor has and the system saves. Asked of the processor itself: not every compiler's
// __builtin_cpu_supports knows all the names, and Zig's says no to each of them.
struct X86Features {
  bool avx2 = false, avx512 = false, vnni = false, bf16 = false, tiles = false;

  X86Features() {
    constexpr unsigned kFma = 1u << 12, kSavedBySystem = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
    constexpr unsigned kAvx2 = 1u << 5, kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    constexpr unsigned kVnni = 1u << 11, kTiles = 1u << 24 | 1u << 25 | 1u << 22;             // TILE, INT8, BF16
    constexpr unsigned kAvxState = 3u << 1, kAvx512State = kAvxState | 7u << 5, kTileState = 3u << 17;
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !has(c, kFma | kSavedBySystem | kAvx | kF16c)) return;
    unsigned saved, unused;
    __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return;
    avx2 = has(saved, kAvxState) && has(b, kAvx2);
    avx512 = avx2 && has(saved, kAvx512State) && has(b, kAvx512);
    vnni = avx512 && has(c, kVnni);
    tiles = vnni && has(saved, kTileState) && has(d, kTiles);
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) bf16 = vnni && has(a, 1u << 5);
  }
};
#endif

#if defined(SK_HAVE_BF16_LEVELS)
// Linux gives a process leave to use tiles when asked.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
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
  const X86Features x86;
#if defined(SK_HAVE_BF16_LEVELS)
  if (x86.tiles && may_use_tiles()) found.push_back(&kAmxLevel);
  if (x86.bf16) found.push_back(&kAvx512Bf16Level);
  if (x86.vnni) found.push_back(&kAvx512VnniLevel);
#endif
  if (x86.avx512) found.push_back(&kAvx512Level);
  if (x86.avx2) found.push_back(&kAvx2Level);
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
