// The same bits on every level and every processor: all results that do not depend on what multiplies bf16, as one hash
// per op and dtype, against those of AVX2 on x86-64 with glibc. Build and run as native_test.cpp says.
//
// Inputs are drawn without a function of libm. NaN counts as one value: which of its bits are set is the processor's
// affair. The portable level has other sums where the machine does not fuse multiply-adds, and is left out there.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "common/half.h"
#include "cpu/encode/screens/prepared.h"
#include "cpu/kernels.h"
#include "cpu/levels/level.h"

using namespace saekernels;

namespace {

constexpr int64_t kRows = 37, kDepth = 83, kLatents = 219, kTop = 11;
constexpr int kThreads = 3;

class Hash {
 public:
  void add(const float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) mix(values[i] != values[i] ? 0x7fc00000u : float_bits(values[i]));
  }
  void add(const std::vector<float>& values) { add(values.data(), static_cast<int64_t>(values.size())); }
  void add(const std::vector<int32_t>& values) {
    for (const int32_t value : values) mix(static_cast<uint32_t>(value));
  }
  uint32_t value() const { return static_cast<uint32_t>(bits_ ^ (bits_ >> 32)); }

 private:
  void mix(uint32_t word) { bits_ = (bits_ ^ word) * 0x100000001b3u; }  // FNV-1a, a word at a time

  uint64_t bits_ = 0xcbf29ce484222325u;
};

// About normal: the sum of four bytes, and bits that make products inexact.
std::vector<float> draw(int64_t count, uint32_t seed) {
  std::vector<float> values;
  uint64_t state = seed;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const auto high = static_cast<uint32_t>(state >> 32);
    const uint32_t sum = (high & 255) + (high >> 8 & 255) + (high >> 16 & 255) + (high >> 24);
    const double rest = static_cast<double>(state & 0xffffff) * 0x1p-24;
    values.push_back(static_cast<float>((sum - 510.0 + rest) * 0x1p-7));
  }
  return values;
}

// A matrix of fp32, bf16 or fp16, and its values.
class Stored {
 public:
  Stored(const std::vector<float>& values, int64_t rows, DType dtype)
      : bytes_(values.size() * static_cast<size_t>(element_size(dtype))),
        rows_(rows),
        columns_(static_cast<int64_t>(values.size()) / rows),
        dtype_(dtype) {
    level().store_row(values.data(), rows_ * columns_, dtype, bytes_.data());
  }
  Matrix view() const { return {bytes_.data(), rows_, columns_, columns_, 1, dtype_}; }
  Matrix turned() const { return {bytes_.data(), columns_, rows_, 1, columns_, dtype_}; }
  MutableRows out() { return {bytes_.data(), columns_, dtype_}; }
  void* data() { return bytes_.data(); }
  std::vector<float> values() const {
    std::vector<float> all(static_cast<size_t>(rows_ * columns_));
    const Matrix flat{bytes_.data(), 1, rows_ * columns_, rows_ * columns_, 1, dtype_};
    level().load_row(flat, 0, 0, flat.cols, all.data());
    return all;
  }

 private:
  std::vector<char> bytes_;
  int64_t rows_, columns_;
  DType dtype_;
};

using Hashes = std::map<std::string, uint32_t>;

class Problem {
 public:
  explicit Problem(DType dtype)
      : dtype_(dtype),
        x_(draw(kRows * kDepth, 1), kRows, dtype),
        y_(draw(kRows * kDepth, 2), kRows, dtype),
        weight_(with_nan(draw(kLatents * kDepth, 3)), kLatents, dtype),
        head_(draw(kLatents * kDepth, 4), kLatents, dtype),
        bias_(draw(kLatents, 5), 1, dtype) {}

  Hashes run() const {
    Hashes found;
    for (const char* screen : {"fp32", "bf16", "int16", "int8", "auto"}) {
      set_screening(screen);
      const uint32_t hash = encoded();
      if (found.count("encode") != 0 && found["encode"] != hash) {
        std::fprintf(stderr, "FAILED: screening in %s changes bits (SIMD level %s)\n", screen, level().name);
        std::exit(1);
      }
      found["encode"] = hash;
    }
    sparse(&found);
    found["adam"] = stepped();
    if (level().nr == 16) losses(&found);  // of eight lanes, whose sums in fp64 depend on their number
    return found;
  }

 private:
  static std::vector<float> with_nan(std::vector<float> values) {
    values[0] = std::numeric_limits<float>::quiet_NaN();
    values[1] = 0x1p-140f;
    return values;
  }

  uint32_t encoded() const {
    Hash hash;
    Encoder encoder{x_.view(), weight_.view(), bias_.view(), {}, nullptr, {}};
    const int64_t bytes = prepared_bytes(kLatents, kDepth);
    std::vector<char> block(static_cast<size_t>(bytes) + 64);
    char* aligned = block.data() + (64 - reinterpret_cast<uintptr_t>(block.data()) % 64);
    prepare(encoder.weight, kThreads, aligned);
    const Prepared ready = read_prepared(aligned, bytes, encoder.weight);
    for (const Prepared* prepared : {static_cast<const Prepared*>(nullptr), &ready}) {
      encoder.prepared = prepared;
      for (const Activation activation : {Activation::kNone, Activation::kRelu, Activation::kAbs}) {
        std::vector<float> values(static_cast<size_t>(kRows * kTop));
        std::vector<int32_t> indices(values.size());
        encode_topk(encoder, kTop, activation, kThreads, {DType::kFloat32, values.data(), indices.data()});
        hash.add(values);
        hash.add(indices);
      }
      const float limit = 9.5f;
      const auto codes = encode_threshold(encoder, {&limit, 1, 1, 1, 1, DType::kFloat32}, kThreads);
      std::vector<float> values(static_cast<size_t>(codes->nnz()));
      std::vector<int32_t> indices(values.size());
      codes->move_to(DType::kFloat32, values.data(), indices.data());
      hash.add(values);
      hash.add(indices);
    }
    return hash.value();
  }

  void sparse(Hashes* found) const {
    const auto room = [&](int64_t rows, int64_t columns) {
      return Stored(std::vector<float>(static_cast<size_t>(rows * columns)), rows, dtype_);
    };
    const auto keep = [&](const char* op, const Stored& out) {
      Hash hash;
      hash.add(out.values());
      (*found)[op] = hash.value();
    };
    Stored values = room(kRows, kTop);
    std::vector<int32_t> indices(static_cast<size_t>(kRows * kTop));
    topk(x_.view(), kTop, kThreads, values.data(), indices.data());
    keep("topk", values);
    std::vector<int64_t> offsets;
    for (int64_t t = 0; t <= kRows; ++t) offsets.push_back(t * kTop);
    const Entries codes{values.data(), dtype_, indices.data(), offsets.data(), kRows, kRows * kTop};
    Stored decoded = room(kRows, kDepth), dots = room(1, kRows * kTop), sums = room(kLatents, kDepth);
    decode(codes, head_.view(), {}, kThreads, decoded.out());
    keep("decode", decoded);
    gather_dot(x_.view(), head_.view(), codes, kThreads, dots.out());
    keep("gather_dot", dots);
    segment_outer(codes, x_.view(), kLatents, kThreads, sums.out());
    keep("segment_outer", sums);
    Stored totals = room(1, kLatents);
    segment_sum(codes, kLatents, totals.data());
    keep("segment_sum", totals);
  }

  uint32_t stepped() const {
    Hash hash;
    for (const bool sums : {false, true}) {
      for (const bool turned : {false, true}) {
        const auto filled = [&](float value) {
          return Stored(std::vector<float>(static_cast<size_t>(kLatents * kDepth), value), kLatents, dtype_);
        };
        Stored p(draw(kLatents * kDepth, 6), kLatents, dtype_), g(draw(kLatents * kDepth, 7), kLatents, dtype_);
        Stored m = filled(0.5f), v = filled(0.25f);
        const AdamStep step{0.5f, 0.01f, 0.99f, 0.9f, 0.1f, 0.99f, 0.01f, 0.1f, 0.5f, 1e-8f, sums, sums};
        adam_step(step, {turned ? p.turned() : p.view(), g.data(), m.data(), v.data()}, kThreads);
        for (const Stored* part : {&p, &m, &v}) hash.add(part->values());
      }
    }
    return hash.value();
  }

  void losses(Hashes* found) const {
    if (level().bf16_fast && dtype_ == DType::kBfloat16) return;  // products of bf16 round as the processor does
    std::vector<int64_t> targets;
    for (int64_t t = 0; t < kRows; ++t) targets.push_back(t == 1 ? -100 : t * 5 % kLatents);
    std::vector<float> out(static_cast<size_t>(4 * kRows)), grads(static_cast<size_t>(kRows), 0.5f);
    const LossArgs args{x_.view(), {y_.view()}, head_.view(), bias_.view(), targets.data(), 20};
    float* l = out.data();
    linear_ce_kl(args, kThreads, l, l + kRows, l + 2 * kRows, l + 3 * kRows);
    Hash hash;
    hash.add(out);
    (*found)["linear_ce_kl"] = hash.value();
    const auto room = [&](int64_t rows) {
      return Stored(std::vector<float>(static_cast<size_t>(rows * kDepth)), rows, dtype_);
    };
    Stored d_p = room(kRows), d_q = room(kRows), d_head = room(kLatents);
    std::vector<float> d_bias(static_cast<size_t>(kLatents));
    linear_ce_kl_backward(args, {l, l + kRows, l + 2 * kRows, grads.data(), grads.data(), grads.data()}, kThreads,
                          {d_p.out(), d_q.out(), d_head.out(), {d_bias.data(), kLatents, DType::kFloat32}});
    Hash back;
    for (const Stored* part : {&d_p, &d_q, &d_head}) back.add(part->values());
    back.add(d_bias);
    (*found)["linear_ce_kl_backward"] = back.value();
  }

  DType dtype_;
  Stored x_, y_, weight_, head_, bias_;
};

// Printed by `bits_test --print` at AVX2.
const Hashes kWanted[] = {
#include "tests/bits_wanted.inc"
};
constexpr const char* kDTypes[] = {"fp32", "bf16", "fp16"};

// What a fused multiply-add leaves of 1 - (1 + 2^-13) (1 - 2^-13), and others do not.
bool fuses() {
  std::vector<float> a(kDotLanes, 0.0f), b(kDotLanes, 0.0f), sum(kDotLanes);
  const int32_t ids[] = {0, 1};
  const float weights[] = {1.0f, 1 + 0x1p-13f};
  std::vector<float> rows(2 * kDotLanes, 1.0f);
  for (int64_t j = 0; j < kDotLanes; ++j) rows[static_cast<size_t>(kDotLanes + j)] = -1 + 0x1p-13f;
  level().gather_sum(sum.data(), weights, ids, 2, 0, {rows.data(), 2, kDotLanes, kDotLanes, 1, DType::kFloat32});
  return sum[0] != 0;
}

}  // namespace

int main(int count, char** arguments) {
  const bool print = count > 1 && std::strcmp(arguments[1], "--print") == 0;
  const std::string levels = supported_levels();
  int failures = 0, compared = 0;
  for (size_t begin = 0;;) {
    const size_t end = levels.find(',', begin);
    set_level(levels.substr(begin, end - begin).c_str());
    const bool left_out = !fuses() && std::strcmp(level().name, "portable") == 0;
    for (int dtype = 0; dtype < 3 && !left_out; ++dtype) {
      const Hashes found = Problem(static_cast<DType>(dtype)).run();
      if (print) std::puts("    {");
      for (const auto& [op, hash] : found) {
        if (print) std::printf("        {\"%s\", 0x%08xu},\n", op.c_str(), hash);
        if (print) continue;
        ++compared;
        const auto wanted = kWanted[dtype].find(op);
        if (wanted != kWanted[dtype].end() && wanted->second == hash) continue;
        std::fprintf(stderr, "FAILED: %s in %s has other bits (SIMD level %s)\n", op.c_str(), kDTypes[dtype],
                     level().name);
        ++failures;
      }
      if (print) std::puts("    },");
    }
    if (end == std::string::npos || print) break;
    begin = end + 1;
  }
  if (!print) std::printf("%s: %d hashes compared at %s\n", failures == 0 ? "ok" : "FAILED", compared, levels.c_str());
  return failures == 0 ? 0 : 1;
}
