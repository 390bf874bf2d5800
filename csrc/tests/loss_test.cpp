// The loss and its gradient against double precision, at every level and through an emulation of AMX: in fp32, and in
// bf16 from products of bf16. Exactly sized buffers let the address sanitizer see a step outside. Build and run as
// native_test.cpp says.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/simd/vec_portable.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
#include "tests/amx_emulation.h"
// and this on the emulation.
#include "cpu/simd/amx.h"

using namespace saekernels;

namespace {

SK_LEVEL_TABLE(kEmulatedLevel, "emulated amx", amx_tile, true, integer_product<PlainDot<int16_t>>,
               integer_product<PlainDot<int8_t>>, nullptr, Screening::kBf16, 0, "amx")

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s (SIMD level %s)\n", what.c_str(), level().name);
  std::exit(1);
}

size_t size(int64_t n) { return static_cast<size_t>(n); }

using Doubles = std::vector<double>;

struct Stream {
  Doubles h, ce, d_h;
};

// h_p, h_q [T, d], W_U [V, d], bias [V]; losses and gradients of sum(a ce_p + b ce_q + c kl) in double precision.
class Problem {
 public:
  Problem(int64_t tokens, int64_t depth, int64_t words, float softcap, DType dtype)
      : T(tokens), d(depth), V(words), cap(softcap), dtype_(dtype), random_(5) {
    p.h = draw(T * d, 1);
    q.h = draw(T * d, 1);
    weight = draw(V * d, 2 / std::sqrt(static_cast<double>(d)));
    for (int64_t v = 0; v < V; ++v) bias.push_back(static_cast<float>(normal_(random_)));
    for (int i = 0; i < 3; ++i) {
      for (int64_t t = 0; t < T; ++t) grads[i].push_back(static_cast<float>(normal_(random_)));
    }
    for (int64_t t = 0; t < T; ++t) targets.push_back(static_cast<int64_t>(random_() % size(V)));
    if (T > 2) targets[1] = -100;
    kl.assign(size(T), 0);
    for (Stream* s : {&p, &q}) {
      s->ce.assign(size(T), 0);
      s->d_h.assign(size(T * d), 0);
    }
    d_weight.assign(size(V * d), 0);
    d_bias.assign(size(V), 0);
    for (int64_t t = 0; t < T; ++t) {
      if (targets[size(t)] >= 0) token(t);
    }
  }

  // Largest error of losses, and of gradients over their norm; every bit of them is appended to *bits.
  std::pair<double, double> errors(int threads, std::vector<float>* bits) const {
    const std::vector<char> h_p = stored(p.h), h_q = stored(q.h), w = stored(weight);
    const auto matrix = [&](const std::vector<char>& m, int64_t rows) {
      return Matrix{m.data(), rows, d, d, 1, dtype_};
    };
    const Matrix offsets{bias.data(), 1, V, V, 1, DType::kFloat32};
    const LossArgs args{matrix(h_p, T), {matrix(h_q, T)}, matrix(w, V), offsets, targets.data(), cap};
    std::vector<float> out[4], d_offsets(size(V));
    for (auto& values : out) values.resize(size(T));
    linear_ce_kl(args, threads, out[0].data(), out[1].data(), out[2].data(), out[3].data());
    std::vector<char> d_hp(h_p.size()), d_hq(h_q.size()), d_w(w.size());
    const auto rows = [&](std::vector<char>& m) { return MutableRows{m.data(), d, dtype_}; };
    linear_ce_kl_backward(
        args, {out[0].data(), out[1].data(), out[2].data(), grads[0].data(), grads[1].data(), grads[2].data()}, threads,
        {rows(d_hp), rows(d_hq), rows(d_w), {d_offsets.data(), V, DType::kFloat32}});
    double loss = 0;
    const Doubles* want[] = {&p.ce, &q.ce, &kl};
    for (int i = 0; i < 3; ++i) {
      for (int64_t t = 0; t < T; ++t) loss = std::max(loss, std::abs((*want[i])[size(t)] - out[i][size(t)]));
    }
    double gradient = relative(loaded(d_hp), p.d_h, bits);
    gradient = std::max(gradient, relative(loaded(d_hq), q.d_h, bits));
    gradient = std::max(gradient, relative(loaded(d_w), d_weight, bits));
    gradient = std::max(gradient, relative(d_offsets, d_bias, bits));
    for (const auto& values : out) bits->insert(bits->end(), values.begin(), values.end());
    return {loss, gradient};
  }

 private:
  Doubles draw(int64_t n, double scale) {
    Doubles values;
    for (int64_t i = 0; i < n; ++i) {
      float value = static_cast<float>(scale * normal_(random_));
      if (dtype_ == DType::kBfloat16) {
        Bf16 rounded;
        from_float(value, &rounded);
        value = to_float(rounded);
      }
      values.push_back(value);
    }
    return values;
  }

  std::vector<char> stored(const Doubles& values) const {
    std::vector<char> bytes(values.size() * size(element_size(dtype_)));
    for (size_t i = 0; i < values.size(); ++i) {
      const float value = static_cast<float>(values[i]);
      if (dtype_ == DType::kFloat32) std::memcpy(bytes.data() + 4 * i, &value, 4);
      if (dtype_ == DType::kBfloat16) from_float(value, reinterpret_cast<Bf16*>(bytes.data()) + i);
    }
    return bytes;
  }

  std::vector<float> loaded(const std::vector<char>& bytes) const {
    std::vector<float> values(bytes.size() / size(element_size(dtype_)));
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype_ == DType::kFloat32) std::memcpy(&values[i], bytes.data() + 4 * i, 4);
      if (dtype_ == DType::kBfloat16) values[i] = to_float(reinterpret_cast<const Bf16*>(bytes.data())[i]);
    }
    return values;
  }

  static double relative(const std::vector<float>& got, const Doubles& want, std::vector<float>* bits) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (got[i] - want[i]) * (got[i] - want[i]);
      norm += want[i] * want[i];
    }
    bits->insert(bits->end(), got.begin(), got.end());
    return std::sqrt(error) / std::max(std::sqrt(norm), 0.1);  // of a single word nothing is left
  }

  Doubles log_probabilities(const Stream& s, int64_t t, Doubles* slope) const {
    Doubles z(size(V));
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) {
      double dot = bias[size(v)];
      for (int64_t k = 0; k < d; ++k) dot += s.h[size(t * d + k)] * weight[size(v * d + k)];
      z[size(v)] = cap > 0 ? cap * std::tanh(dot / cap) : dot;
      slope->push_back(cap > 0 ? 1 - std::pow(z[size(v)] / cap, 2) : 1);
      sum += std::exp(z[size(v)]);
    }
    for (double& value : z) value -= std::log(sum);
    return z;
  }

  void token(int64_t t) {
    Doubles slope_p, slope_q;
    const Doubles log_p = log_probabilities(p, t, &slope_p), log_q = log_probabilities(q, t, &slope_q);
    const size_t target = size(targets[size(t)]);
    p.ce[size(t)] = -log_p[target];
    q.ce[size(t)] = -log_q[target];
    for (size_t v = 0; v < log_p.size(); ++v) kl[size(t)] += std::exp(log_p[v]) * (log_p[v] - log_q[v]);
    for (size_t v = 0; v < log_p.size(); ++v) {
      const double one = v == target, a = std::exp(log_p[v]), b = std::exp(log_q[v]);
      const double g_p = grads[0][size(t)], g_q = grads[1][size(t)], g_kl = grads[2][size(t)];
      const double dz_p = slope_p[v] * (g_p * (a - one) + g_kl * a * (log_p[v] - log_q[v] - kl[size(t)]));
      const double dz_q = slope_q[v] * (g_q * (b - one) + g_kl * (b - a));
      for (size_t k = 0; k < size(d); ++k) {
        const size_t at = size(t * d) + k, word = v * size(d) + k;
        p.d_h[at] += dz_p * weight[word];
        q.d_h[at] += dz_q * weight[word];
        d_weight[word] += dz_p * p.h[at] + dz_q * q.h[at];
      }
      d_bias[v] += dz_p + dz_q;
    }
  }

  int64_t T, d, V;
  float cap;
  DType dtype_;
  std::mt19937 random_;
  std::normal_distribution<double> normal_;
  Stream p, q;
  Doubles weight, d_weight, d_bias, kl;
  std::vector<float> bias, grads[3];
  std::vector<int64_t> targets;
};

void check_level(int threads) {
  for (const DType dtype : {DType::kFloat32, DType::kBfloat16}) {
    const int64_t shapes[][3] = {{1, 1, 1}, {3, 5, 40}, {17, 33, 97}, {33, 64, 800}, {70, 100, 1700}};
    for (const auto& shape : shapes) {
      for (const float cap : {0.0f, 3.0f}) {
        const Problem problem(shape[0], shape[1], shape[2], cap, dtype);
        std::vector<float> alone, together;
        const auto [loss, gradient] = problem.errors(1, &alone);
        require(loss < 1e-5, "losses are those of double precision, not " + std::to_string(loss) + " off");
        require(gradient < (dtype == DType::kFloat32 ? 1e-5 : 6e-3),
                "gradients are those of double precision, not " + std::to_string(gradient) + " off");
        problem.errors(threads, &together);
        require(alone.size() == together.size() &&
                    std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)) == 0,
                "thread counts agree");
      }
    }
  }
}

}  // namespace

int main() {
  const std::string levels = supported_levels();
  for (size_t begin = 0;;) {
    const size_t end = levels.find(',', begin);
    set_level(levels.substr(begin, end - begin).c_str());
    check_level(3);
    if (end == std::string::npos) break;
    begin = end + 1;
  }
  set_level(kEmulatedLevel);
  check_level(1);  // the emulated tiles are shared by all threads
  require(amx_emulation::products > 0 && !amx_emulation::configured, "tiles were used and given back");
  std::puts("ok");
  return 0;
}
