#include "cpu/encode/screens/prepared.h"

#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "cpu/encode/screens/integer_screen.h"
#include "cpu/encode/screens/screen.h"
#include "cpu/threads/parallel.h"

namespace saekernels {
namespace {

struct alignas(64) Header {
  char magic[8];
  int32_t screens;  // a bit for each
  int32_t dtype;
  int64_t latents;
  int64_t depth;
};

constexpr char kMagic[8] = {'S', 'A', 'E', 'P', 'R', 'E', 'P', '2'};

int64_t padded_latents(int64_t latents) { return round_up(latents, kMaxPanel); }

Header header_for(const Matrix& weight) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  for (const Screening kind : prepared_screens(weight.cols)) header.screens |= 1 << static_cast<int>(kind);
  header.dtype = static_cast<int32_t>(weight.dtype);
  header.latents = weight.rows;
  header.depth = weight.cols;
  return header;
}

struct Section {
  float *norms, *errors, *scales;
  char *panels, *end;
};

Section section_at(char* begin, Screening kind, int64_t rows, int64_t depth) {
  Section section{};
  section.norms = reinterpret_cast<float*>(begin);
  section.errors = section.norms + rows;
  section.scales = section.errors + rows;
  section.panels = reinterpret_cast<char*>(section.scales + (is_integer(kind) ? rows : 0));
  section.end = section.panels + rows * panel_width(kind, depth);
  return section;
}

void prepare_panel(const Level& simd, const Matrix& weight, Screening kind, int64_t first, const Section& to) {
  const int64_t width = panel_width(kind, weight.cols), padded = round_up(weight.cols, kDotLanes);
  const int64_t count = std::clamp<int64_t>(weight.rows - first, 0, kScreenPanel);
  Buffer<float> staged(padded);
  Buffer<char> rounded(kScreenPanel * std::max(width, 2 * padded));
  if (is_integer(kind)) {
    quantise_latents(simd, weight, kind, first, count, staged.get(), rounded.get(), to.norms + first, to.errors + first,
                     to.scales + first);
  } else {
    round_latents(simd, weight, first, count, padded, staged.get(), reinterpret_cast<Bf16*>(rounded.get()),
                  to.norms + first, to.errors + first);
  }
  if (kind != Screening::kFp32) {
    simd.interleave_latents(rounded.get(), width, to.panels + first * width);
  } else {
    std::fill(to.errors + first, to.errors + first + count, 0.0f);  // an fp32 screen rounds nothing
  }
}

}  // namespace

int64_t prepared_bytes(int64_t latents, int64_t depth) {
  const int64_t rows = padded_latents(latents);
  int64_t bytes = static_cast<int64_t>(sizeof(Header));
  for (const Screening kind : prepared_screens(depth)) {
    bytes += rows * (is_integer(kind) ? 12 : 8) + rows * panel_width(kind, depth);
  }
  return bytes;
}

void prepare(const Matrix& weight, int threads, void* out) {
  const Level& simd = level();
  const Header header = header_for(weight);
  std::memcpy(out, &header, sizeof header);
  const int64_t rows = padded_latents(weight.rows);
  const double work = static_cast<double>(rows) * static_cast<double>(weight.cols);
  char* begin = static_cast<char*>(out) + sizeof header;
  for (const Screening kind : prepared_screens(weight.cols)) {
    const Section section = section_at(begin, kind, rows, weight.cols);
    std::fill(section.norms, reinterpret_cast<float*>(section.panels), 0.0f);
    parallel_for(rows / kScreenPanel, workers_for(work, 1 << 18, threads),
                 [&](int64_t panel, int) { prepare_panel(simd, weight, kind, panel * kScreenPanel, section); });
    begin = section.end;
  }
}

// Of elements first, first + step, ...
template <class Bits>
uint64_t hash_every(const Matrix& weight, int64_t first, int64_t step) {
  constexpr uint64_t kPrime = 0x100000001b3u;  // FNV-1a, a word at a time
  constexpr int kLanes = 4;                    // of which each waits for its own products alone
  const int64_t count = weight.rows * weight.cols, columns = step % weight.cols;
  const int64_t stride = step / weight.cols * weight.row_stride + columns * weight.col_stride;
  const int64_t wrap = weight.row_stride - weight.cols * weight.col_stride;
  uint64_t lanes[kLanes] = {0xcbf29ce484222325u, 1, 2, 3};
  int64_t column = first % weight.cols;
  int64_t next = first / weight.cols * weight.row_stride + column * weight.col_stride;
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
  int64_t at = first;
  for (; at + (kLanes - 1) * step < count; at += kLanes * step) {
    for (uint64_t& lane : lanes) take(&lane);
  }
  for (; at < count; at += step) take(&lanes[0]);
  for (int i = 1; i < kLanes; ++i) lanes[0] = (lanes[0] ^ lanes[i]) * kPrime;
  return lanes[0];
}

uint64_t fingerprint(const Matrix& weight, int64_t samples, int64_t look, int64_t looks) {
  const int64_t count = weight.rows * weight.cols;
  if (count <= samples) look = 0, looks = 1;
  // An odd step that has no factor in common with the columns meets every column and, where there are fewer than the
  // samples, every row.
  int64_t step = (count / samples) | 1;
  while (std::gcd(step, weight.cols) != 1) step += 2;
  return element_size(weight.dtype) == 4 ? hash_every<uint32_t>(weight, look * step, looks * step)
                                         : hash_every<uint16_t>(weight, look * step, looks * step);
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
  Prepared prepared;
  char* begin = const_cast<char*>(static_cast<const char*>(data)) + sizeof got;
  for (const Screening kind : prepared_screens(weight.cols)) {
    const Section part = section_at(begin, kind, padded_latents(weight.rows), weight.cols);
    prepared.screens[static_cast<int>(kind)] = {part.norms, part.errors, is_integer(kind) ? part.scales : nullptr,
                                                part.panels};
    begin = part.end;
  }
  return prepared;
}

}  // namespace saekernels
