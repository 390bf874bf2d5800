#include "cpu/encode/prepared.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"
#include "cpu/encode/screen.h"

namespace saekernels {
namespace {

struct alignas(64) Header {
  char magic[8];
  int32_t screening;
  int32_t dtype;
  int64_t latents;
  int64_t depth;
};

constexpr char kMagic[8] = {'S', 'A', 'E', 'P', 'R', 'E', 'P', '1'};

Header header_for(const Matrix& weight) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.screening = static_cast<int32_t>(screening());
  header.dtype = static_cast<int32_t>(weight.dtype);
  header.latents = weight.rows;
  header.depth = weight.cols;
  return header;
}

int64_t padded_latents(int64_t latents) { return round_up(latents, kMaxPanel); }

int parse(const char* name) {
  if (std::strcmp(name, "auto") == 0) return -1;
  if (std::strcmp(name, "fp32") == 0) return static_cast<int>(Screening::kFp32);
  if (std::strcmp(name, "bf16") == 0) return static_cast<int>(Screening::kBf16);
  throw std::invalid_argument(std::string("screening '") + name + "' is unknown; need auto, fp32 or bf16");
}

std::atomic<int>& forced() {
  static std::atomic<int> choice{[] {
    const char* name = std::getenv("SAEKERNELS_SCREEN");
    return parse(name != nullptr && *name != '\0' ? name : "auto");
  }()};
  return choice;
}

}  // namespace

Screening screening() {
  const int choice = forced().load(std::memory_order_relaxed);
  if (choice >= 0) return static_cast<Screening>(choice);
  return level().bf16_hardware != nullptr ? Screening::kBf16 : Screening::kFp32;
}

void set_screening(const char* name) { forced().store(parse(name), std::memory_order_relaxed); }

const char* screening_name() { return screening() == Screening::kBf16 ? "bf16" : "fp32"; }

int64_t prepared_bytes(int64_t latents, int64_t depth) {
  const int64_t rows = padded_latents(latents);
  const int64_t panels = screening() == Screening::kBf16 ? rows * round_up(depth, kScreenDepth) * 2 : 0;
  return static_cast<int64_t>(sizeof(Header)) + rows * 8 + panels;
}

void prepare(const Matrix& weight, int threads, void* out) {
  const Level& simd = level();
  const Header header = header_for(weight);
  std::memcpy(out, &header, sizeof header);
  const int64_t rows = padded_latents(weight.rows), padded = round_up(weight.cols, kScreenDepth);
  float* norms = reinterpret_cast<float*>(static_cast<char*>(out) + sizeof header);
  float* errors = norms + rows;
  std::fill(norms, errors + rows, 0.0f);
  Bf16* panels = reinterpret_cast<Bf16*>(errors + rows);
  const bool bf16 = header.screening == static_cast<int32_t>(Screening::kBf16);
  const double work = static_cast<double>(rows) * static_cast<double>(padded);
  parallel_for(rows / kScreenPanel, workers_for(work, 1 << 18, threads), [&](int64_t panel, int) {
    Buffer<float> staged(padded);
    Buffer<Bf16> rounded(kScreenPanel * padded);
    const int64_t first = panel * kScreenPanel;
    const int64_t count = std::clamp<int64_t>(weight.rows - first, 0, kScreenPanel);
    round_latents(simd, weight, first, count, padded, staged.get(), rounded.get(), norms + first, errors + first);
    if (bf16) {
      simd.interleave_latents(rounded.get(), padded, panels + first * padded);
    } else {
      std::fill(errors + first, errors + first + count, 0.0f);  // an fp32 screen rounds nothing
    }
  });
}

template <class Bits>
uint64_t hash_every(const Matrix& weight, int64_t step) {
  constexpr uint64_t kPrime = 0x100000001b3u;  // FNV-1a, a word at a time
  constexpr int kLanes = 4;                    // of which each waits for its own products alone
  const int64_t count = weight.rows * weight.cols, columns = step % weight.cols;
  const int64_t stride = step / weight.cols * weight.row_stride + columns * weight.col_stride;
  const int64_t wrap = weight.row_stride - weight.cols * weight.col_stride;
  uint64_t lanes[kLanes] = {0xcbf29ce484222325u, 1, 2, 3};
  int64_t next = 0, column = 0;
  const auto take = [&](uint64_t* lane) {
    Bits bits;
    std::memcpy(&bits, static_cast<const char*>(weight.data) + next * static_cast<int64_t>(sizeof bits), sizeof bits);
    *lane = (*lane ^ bits) * kPrime;
    next += stride;
    column += columns;
    if (column >= weight.cols) {
      column -= weight.cols;
      next += wrap;
    }
  };
  int64_t at = 0;
  for (; at + (kLanes - 1) * step < count; at += kLanes * step) {
    for (uint64_t& lane : lanes) take(&lane);
  }
  for (; at < count; at += step) take(&lanes[0]);
  for (int i = 1; i < kLanes; ++i) lanes[0] = (lanes[0] ^ lanes[i]) * kPrime;
  return lanes[0];
}

uint64_t fingerprint(const Matrix& weight, int64_t samples) {
  // An odd step meets every column and, where there are fewer than the samples, every row.
  const int64_t step = ((weight.rows * weight.cols) / samples) | 1;
  return element_size(weight.dtype) == 4 ? hash_every<uint32_t>(weight, step) : hash_every<uint16_t>(weight, step);
}

Prepared read_prepared(const void* data, int64_t bytes, const Matrix& weight) {
  const Header want = header_for(weight);
  Header got{};
  if (bytes >= static_cast<int64_t>(sizeof got)) std::memcpy(&got, data, sizeof got);
  if (bytes != prepared_bytes(weight.rows, weight.cols) || std::memcmp(&got, &want, sizeof got) != 0) {
    throw std::invalid_argument(
        "prepared: not made from weights of this shape and dtype under the present screening (" +
        std::string(screening_name()) + "); call prepare(W_enc) again");
  }
  const int64_t rows = padded_latents(weight.rows);
  const float* norms = reinterpret_cast<const float*>(static_cast<const char*>(data) + sizeof got);
  const bool bf16 = want.screening == static_cast<int32_t>(Screening::kBf16);
  return {static_cast<Screening>(want.screening), norms, norms + rows,
          bf16 ? reinterpret_cast<const Bf16*>(norms + 2 * rows) : nullptr};
}

}  // namespace saekernels
