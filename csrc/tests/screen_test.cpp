// The screens: every score within the reach they promise, for data of many sizes and shapes, and the AMX product
// through an emulation of its instructions. Build and run as native_test.cpp says.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/encode/screen.h"
#include "cpu/simd/vec_portable.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
#include "tests/amx_emulation.h"
// and this on the emulation.
#include "cpu/simd/amx.h"

using namespace saekernels;

namespace {

// The level whose bf16 product is the emulated AMX one.
SK_LEVEL_TABLE(kEmulatedLevel, "emulated amx", amx_tile, "amx")

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s (SIMD level %s, screening %s)\n", what.c_str(), level().name, screening_name());
  std::exit(1);
}

enum class Kind { kGaussian, kHeavy, kTiny, kSubnormal, kLarge, kOneDirection, kAlike };
constexpr Kind kKinds[] = {Kind::kGaussian, Kind::kHeavy,        Kind::kTiny, Kind::kSubnormal,
                           Kind::kLarge,    Kind::kOneDirection, Kind::kAlike};

std::vector<float> draw(int64_t rows, int64_t depth, Kind kind, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(rows * depth));
  for (int64_t i = 0; i < rows * depth; ++i) {
    float v = normal(random);
    if (kind == Kind::kHeavy) v = v * v * v * v * v;
    if (kind == Kind::kTiny) v *= 1e-19f;
    if (kind == Kind::kSubnormal) v *= 1e-38f;
    if (kind == Kind::kLarge) v *= 1e16f;
    if (kind == Kind::kOneDirection) v *= std::pow(10.0f, -static_cast<float>(i % depth) / 8);
    if (kind == Kind::kAlike) v = 1 + 1e-6f * v;
    values[static_cast<size_t>(i)] = v;
  }
  return values;
}

Matrix view(const std::vector<float>& values, int64_t rows, int64_t depth) {
  return {values.data(), rows, depth, depth, 1, DType::kFloat32};
}

// Scores of the screen and the scores themselves against double precision.
void check_reaches(int64_t rows, int64_t depth, int64_t latents, Kind kind, bool prepared) {
  const std::vector<float> x = draw(rows, depth, kind, 1), w = draw(latents, depth, kind, 2);
  Encoder encoder{view(x, rows, depth), view(w, latents, depth), {}, {}, nullptr};
  const int64_t bytes = prepared_bytes(latents, depth);
  Buffer<char> block(bytes);
  Prepared ready;
  if (prepared) {
    prepare(encoder.weight, 2, block.get());
    ready = read_prepared(block.get(), bytes, encoder.weight);
    encoder.prepared = &ready;
  }
  CentredRows centred(level(), rows, depth);
  centred.load(encoder.x, nullptr, 0, rows, 2);
  const auto screen = make_screen(encoder, screening(), rows, 64);
  screen->pack(centred, rows, 2);
  ScreenTile tile = screen->make_tile();
  double used = 0;
  for (int64_t first = 0; first < latents; first += screen->columns()) {
    const int64_t count = std::min(screen->columns(), latents - first);
    screen->load(encoder, first, count, &tile);
    for (int64_t row = 0; row < rows; row += screen->group()) {
      const int64_t group = std::min(screen->group(), rows - row);
      screen->product(row, group, tile);
      for (int64_t r = 0; r < group; ++r) {
        for (int64_t j = 0; j < count; ++j) {
          double exact = 0;
          for (int64_t k = 0; k < depth; ++k) {
            exact += static_cast<double>(x[static_cast<size_t>((row + r) * depth + k)]) *
                     static_cast<double>(w[static_cast<size_t>((first + j) * depth + k)]);
          }
          float score;
          level().dot_rows(centred.row(row + r), encoder.weight, first + j, 1, &score);
          const float bound = reach(screen->row_reach(row + r), tile.reach_of(j), depth);
          const float screened = tile.scores[r * screen->columns() + j];
          require(screen->row_reach(row + r).finite() && bound < std::numeric_limits<float>::infinity(), "is bounded");
          require(std::abs(static_cast<double>(screened) - score) <= bound, "the score lies within the screen's reach");
          require(std::abs(screened - exact) <= bound, "and so does the sum of the products");
          const float widest = reach(screen->row_reach(row + r), tile.widest, depth);
          require(bound <= widest, "a tile's reach covers its latents'");
          if (bound > 0) used = std::max(used, std::abs(static_cast<double>(screened) - score) / bound);
        }
      }
    }
  }
  if (kind == Kind::kGaussian && depth >= 64) {
    require(used > (screening() == Screening::kBf16 ? 1e-2 : 1e-5), "the reach is not absurdly wide");
  }
}

// The emulated AMX product against the plain one on the same packed operands.
void check_amx(int64_t rows, int64_t panels, int64_t depth) {
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const int64_t all_rows = round_up(rows, 2 * kScreenPanel);
  std::vector<Bf16> a(size(all_rows * depth)), b(size(panels * kScreenPanel * depth));
  for (auto* operand : {&a, &b}) {
    for (Bf16& value : *operand) from_float(normal(random), &value);
  }
  const int64_t columns = panels * kScreenPanel;
  std::vector<float> plain(size(all_rows * columns), -1.0f), tiles(size(all_rows * columns), -1.0f);
  bf16_tile(a.data(), all_rows, b.data(), panels, depth, plain.data(), columns, false);
  amx_tile(a.data(), rows, b.data(), panels, depth, tiles.data(), columns, false);
  for (int64_t i = 0; i < rows * columns; ++i) {
    require(std::abs(plain[size(i)] - tiles[size(i)]) <= 1e-5f * static_cast<float>(depth),
            "AMX and plain products agree");
  }
}

void check_all() {
  for (const Kind kind : kKinds) {
    for (const bool prepared : {false, true}) {
      check_reaches(1, 1, 1, kind, prepared);
      check_reaches(7, 33, 40, kind, prepared);
      check_reaches(133, 64, 97, kind, prepared);
      check_reaches(20, 700, 70, kind, prepared);
    }
  }
}

}  // namespace

int main() {
  const std::string levels = supported_levels();
  for (const char* screen : {"fp32", "bf16"}) {
    set_screening(screen);
    for (size_t begin = 0;;) {
      const size_t end = levels.find(',', begin);
      set_level(levels.substr(begin, end - begin).c_str());
      check_all();
      if (end == std::string::npos) break;
      begin = end + 1;
    }
  }
  for (const int64_t depth : {32, 64, 512, 544, 1536}) {
    for (const int64_t rows : {1, 16, 31, 64, 100}) check_amx(rows, 4, depth);
  }
  require(amx_emulation::products > 0 && !amx_emulation::configured, "tiles were used and given back");
  set_level(kEmulatedLevel);
  set_screening("auto");
  require(screening() == Screening::kBf16, "AMX is screened with by itself");
  check_all();
  std::puts("ok");
  return 0;
}
