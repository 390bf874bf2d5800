// The screens: every score within the reach they promise, for data of many sizes and shapes, and the AMX product
// through an emulation of its instructions. Build and run as native_test.cpp says.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/encode/screens/screen.h"
#include "cpu/simd/vec_portable.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
#include "tests/amx_emulation.h"
// and this on the emulation.
#include "cpu/simd/amx.h"
#include "cpu/simd/integers/amx_int8.h"

using namespace saekernels;

namespace {

// The level whose bf16 and int8 products are the emulated AMX ones.
SK_LEVEL_TABLE(kEmulatedLevel, "emulated amx", amx_tile, true, integer_product<PlainDot<int16_t>>, amx_int8_tile,
               amx_int8_gated, Screening::kBf16, 64, "amx")

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
  Encoder encoder{view(x, rows, depth), view(w, latents, depth), {}, {}, nullptr, {}};
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
  const auto screen = make_screen(encoder, prepared_screens(depth)[0], rows, 64);
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
          level().dot_rows(centred.row(row + r), 0, 1, encoder.weight, first + j, 1, &score, 0);
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
    require(used > (prepared_screens(depth)[0] != Screening::kFp32 ? 1e-2 : 1e-5), "the reach is not absurdly wide");
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

// What a gate lets through, and the scores of words with any of it, against all scores.
void check_gate(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width,
                const std::vector<float>& row_scales, const std::vector<int32_t>& starts,
                const std::vector<float>& scales, const std::vector<float>& plain) {
  const int64_t columns = panels * kScreenPanel, words = panels / 2;
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  for (const bool magnitude : {false, true}) {
    std::vector<float> bias(size(columns)), limits(starts.size()), c(starts.size() * size(columns), -1.0f);
    std::vector<uint32_t> marks(starts.size() * size(words));
    for (int64_t j = 0; j < columns; ++j) bias[size(j)] = 0x1p-3f * static_cast<float>(j % 7 - 3);
    for (int64_t r = 0; r < static_cast<int64_t>(starts.size()); ++r) {
      const float nothing = std::numeric_limits<float>::infinity(), all = std::numeric_limits<float>::quiet_NaN();
      const float some = plain[size(std::min(r, rows - 1) * columns)];
      limits[size(r)] = r >= rows || r % 5 == 1 ? nothing : r % 5 == 2 ? all : magnitude ? std::fabs(some) : some;
    }
    const Gate gate{bias.data(), limits.data(), magnitude, marks.data()};
    level().int8_gated(a, rows, b, panels, width, row_scales.data(), starts.data(), scales.data(), gate, c.data(),
                       columns);
    for (int64_t i = 0; i < rows * columns; ++i) {
      const int64_t r = i / columns, j = i % columns;
      const float score = plain[size(i)] + bias[size(j)];
      const uint32_t word = marks[size(r * words + j / 32)];
      const bool passes = !((magnitude ? std::fabs(score) : score) <= limits[size(r)]);
      require((word >> (j % 32) & 1) == (passes ? 1u : 0u), "a gate marks what passes");
      require(word == 0 || c[size(i)] == score, "and writes the scores of such words");
    }
  }
}

// Sums of integers are exact on every level, whatever multiplies them: all but the last roundings of scores agree.
void check_integers(int64_t rows, int64_t panels, int64_t width, bool extreme) {
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  std::mt19937 random(4);
  const int64_t all_rows = round_up(rows, 2 * kScreenPanel), columns = panels * kScreenPanel;
  Buffer<char> a(all_rows * width), b(columns * width);
  for (int64_t i = 0; i < all_rows * width; ++i) {
    a[i] = static_cast<char>(extreme ? -127 : static_cast<int>(random() % 255) - 127);
  }
  for (int64_t i = 0; i < columns * width; ++i) {
    b[i] = static_cast<char>(extreme ? 255 : static_cast<int>(random() % 255) + 1);
  }
  std::vector<int32_t> starts(size(all_rows), 0);
  for (int64_t r = 0; r < all_rows; ++r) {
    const char* row = a.get() + r / kScreenPanel * width * kScreenPanel + r % kScreenPanel * 64;
    for (int64_t k = 0; k < width; ++k) {
      starts[size(r)] -= 128 * static_cast<int8_t>(row[k / 64 * kScreenPanel * 64 + k % 64]);
    }
  }
  const std::vector<float> row_scales(size(all_rows), 0x1p-9f), scales(size(columns), 0x1p-7f);
  std::vector<float> plain(size(all_rows * columns), -1.0f), fast(size(all_rows * columns), -1.0f);
  integer_product<PlainDot<int8_t>>(a.get(), rows, b.get(), panels, width, row_scales.data(), starts.data(),
                                    scales.data(), plain.data(), columns);
  level().int8_tile(a.get(), rows, b.get(), panels, width, row_scales.data(), starts.data(), scales.data(), fast.data(),
                    columns);
  for (int64_t i = 0; i < rows * columns; ++i) require(plain[size(i)] == fast[size(i)], "int8 sums are exact");
  if (level().int8_gated != nullptr)
    check_gate(a.get(), rows, b.get(), panels, width, row_scales, starts, scales, plain);
  // The same bytes as pairs of int16, small enough for any sum of theirs.
  const auto widen = [](char* bytes, int64_t count) {
    for (int64_t i = 0; i + 1 < count; i += 2) bytes[i + 1] = static_cast<char>(bytes[i] < 0 ? -1 : 0);
  };
  widen(a.get(), all_rows * width);
  widen(b.get(), columns * width);
  integer_product<PlainDot<int16_t>>(a.get(), rows, b.get(), panels, width, row_scales.data(), starts.data(),
                                     scales.data(), plain.data(), columns);
  level().int16_tile(a.get(), rows, b.get(), panels, width, row_scales.data(), starts.data(), scales.data(),
                     fast.data(), columns);
  for (int64_t i = 0; i < rows * columns; ++i) require(plain[size(i)] == fast[size(i)], "int16 sums are exact");
}

// The norm and the size of integers that sums rely on.
void check_quantised(int64_t depth, Kind kind) {
  const int64_t padded = round_up(depth, kDotLanes);
  std::vector<float> row = draw(1, depth, kind, 5);
  row.resize(static_cast<size_t>(padded), 0.0f);
  const float norm = norm_above(level().dot(row.data(), row.data(), padded), depth);
  std::vector<int16_t> wide(static_cast<size_t>(padded));
  std::vector<uint8_t> narrow(static_cast<size_t>(padded));
  const Quantised in16 = level().quantise(row.data(), padded, norm, Screening::kInt16, 0, wide.data());
  const Quantised in8 = level().quantise(row.data(), padded, norm, Screening::kInt8, 128, narrow.data());
  double squares = 0, off16 = 0, off8 = 0, size = 0;
  int64_t sum8 = 0;
  for (int64_t k = 0; k < padded; ++k) {
    const auto at = static_cast<size_t>(k);
    const double x = row[at];
    require(std::abs(wide[at]) <= 32767 && narrow[at] >= 1, "integers keep to their range");
    squares += static_cast<double>(wide[at]) * wide[at];
    sum8 += narrow[at] - 128;
    size += x * x;
    off16 += std::pow(x - static_cast<double>(in16.scale) * wide[at], 2);
    off8 += std::pow(x - static_cast<double>(in8.scale) * (narrow[at] - 128), 2);
  }
  require(std::sqrt(squares) <= 46340, "the norm of int16 rows lets their sums fit");
  require(sum8 == in8.sum, "the sum of the integers is right");
  // As the screens take it: see quantise_row.
  const auto above = [&](float found) { return norm_above(found, depth) * (1 + 0x1p-20) + norm * 0x1p-22; };
  require(std::sqrt(off16) <= above(in16.squares) && std::sqrt(off8) <= above(in8.squares), "errors are from above");
  if (kind == Kind::kGaussian && depth >= 64) {
    require(std::sqrt(off16) < 2e-3 * std::sqrt(size) && std::sqrt(off8) < 2e-2 * std::sqrt(size), "and small");
  }
}

void check_all() {
  for (const bool extreme : {false, true}) {
    for (const int64_t width : {64, 1024, 1088}) check_integers(45, 4, width, extreme);
  }
  for (const Kind kind : kKinds) {
    for (const int64_t depth : {1, 33, 64, 700, 9000}) check_quantised(depth, kind);
  }
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
  for (const char* screen : {"fp32", "bf16", "int16", "int8"}) {
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
  set_level(kEmulatedLevel);
  set_screening("auto");
  require(screens_for({1000, 20000, 8000, 32, true})[0] == Screening::kBf16, "AMX is screened with by itself");
  for (const char* screen : {"bf16", "int8"}) {
    set_screening(screen);
    check_all();
  }
  require(amx_emulation::products > 0 && amx_emulation::byte_products > 0, "tiles were used");
  require(!amx_emulation::configured, "and given back");
  std::puts("ok");
  return 0;
}
