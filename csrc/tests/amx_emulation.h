// The AMX tile instructions in plain C++, by the pseudocode of Intel's manual (volume 2, TILELOADD, TILESTORED,
// TILEZERO, TDPBF16PS, TDPBSUD): eight tiles of at most 16 rows of 64 bytes; products of bf16 pairs added to fp32 one
// after the other, rounded to nearest even, with subnormals taken for zero. Every use before a configuration stops the
// test.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulation {

struct Tile {
  int rows = 0;
  int bytes = 0;
  uint8_t data[16][64] = {};
};

inline Tile tiles[8];
inline bool configured = false;
inline int64_t products = 0, byte_products = 0;

inline void need(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: AMX: %s\n", what);
  std::exit(1);
}

inline Tile& tile(int index) {
  need(configured, "a tile is used before _tile_loadconfig");
  need(index >= 0 && index < 8 && tiles[index].rows > 0, "a tile that is not configured is used");
  return tiles[index];
}

inline void loadconfig(const void* memory) {
  const uint8_t* config = static_cast<const uint8_t*>(memory);
  need(config[0] == 1 && config[1] == 0, "palette 1, start row 0");
  for (int i = 2; i < 16; ++i) need(config[i] == 0, "reserved bytes are zero");
  for (int t = 0; t < 8; ++t) {
    uint16_t bytes;
    std::memcpy(&bytes, config + 16 + 2 * t, sizeof bytes);
    tiles[t] = Tile{};
    tiles[t].rows = config[48 + t];
    tiles[t].bytes = bytes;
    need(tiles[t].rows <= 16 && bytes <= 64, "at most 16 rows of 64 bytes");
  }
  configured = true;
}

inline void release() { configured = false; }
inline void zero(int t) { std::memset(tile(t).data, 0, sizeof tile(t).data); }

inline void loadd(int t, const void* base, int64_t stride) {
  Tile& to = tile(t);
  for (int r = 0; r < to.rows; ++r) {
    std::memcpy(to.data[r], static_cast<const char*>(base) + r * stride, static_cast<size_t>(to.bytes));
  }
}

inline void stored(int t, void* base, int64_t stride) {
  const Tile& from = tile(t);
  for (int r = 0; r < from.rows; ++r) {
    std::memcpy(static_cast<char*>(base) + r * stride, from.data[r], static_cast<size_t>(from.bytes));
  }
}

inline float flush(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

inline float bf16_at(const uint8_t* row, int index) {
  uint16_t half;
  std::memcpy(&half, row + 2 * index, sizeof half);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return flush(value);
}

// Every word of sums, of type Sum, becomes add(sum, left word, right word) for each word of the depth in turn.
template <class Sum, class Add>
void multiply(int c, int a, int b, Add add) {
  Tile& sums = tile(c);
  const Tile &left = tile(a), &right = tile(b);
  need(left.bytes / 4 == right.rows && sums.rows == left.rows && sums.bytes == right.bytes, "tiles fit each other");
  for (int m = 0; m < sums.rows; ++m) {
    for (int k = 0; k < left.bytes / 4; ++k) {
      for (int n = 0; n < sums.bytes / 4; ++n) {
        Sum sum;
        std::memcpy(&sum, sums.data[m] + 4 * n, sizeof sum);
        sum = add(sum, left.data[m] + 4 * k, right.data[k] + 4 * n);
        std::memcpy(sums.data[m] + 4 * n, &sum, sizeof sum);
      }
    }
  }
}

inline void dpbf16ps(int c, int a, int b) {
  multiply<float>(c, a, b, [](float sum, const auto* left, const auto* right) {
    for (int half = 0; half < 2; ++half) sum = flush(std::fma(bf16_at(left, half), bf16_at(right, half), flush(sum)));
    return sum;
  });
  ++products;
}

// Signed bytes of a times unsigned bytes of b.
inline void dpbsud(int c, int a, int b) {
  multiply<uint32_t>(c, a, b, [](uint32_t sum, const auto* left, const auto* right) {
    for (int byte = 0; byte < 4; ++byte) {
      sum += static_cast<uint32_t>(static_cast<int8_t>(left[byte]) * static_cast<uint8_t>(right[byte]));
    }
    return sum;
  });
  ++byte_products;
}

}  // namespace amx_emulation

#define _tile_loadconfig amx_emulation::loadconfig
#define _tile_release amx_emulation::release
#define _tile_zero amx_emulation::zero
#define _tile_loadd amx_emulation::loadd
#define _tile_stored amx_emulation::stored
#define _tile_dpbf16ps amx_emulation::dpbf16ps
#define _tile_dpbsud amx_emulation::dpbsud
