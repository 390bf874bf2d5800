// Exercises every CPU primitive without Python, for sanitizers: odd shapes, all levels, threads that meet in the pool.
//
//   cmake -S . -B build/asan -DSAEKERNELS_PYTHON=OFF -DSAEKERNELS_TESTS=ON -DSAEKERNELS_SANITIZE=address
//   cmake --build build/asan && ctest --test-dir build/asan --output-on-failure
//
// and the same with SAEKERNELS_SANITIZE=thread.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/half.h"
#include "cpu/kernels.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"

using namespace saekernels;

namespace {

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s (SIMD level %s)\n", what.c_str(), level().name);
  std::exit(1);
}

struct Shape {
  int64_t rows, depth, latents, k;
};

// One problem and all results it gives; exactly sized buffers let the address sanitizer see a step outside.
class Problem {
 public:
  explicit Problem(const Shape& shape, unsigned seed) : s_(shape) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    auto draw = [&](int64_t n) {
      std::vector<float> values(static_cast<size_t>(n));
      for (float& value : values) value = normal(random);
      return values;
    };
    x_ = draw(s_.rows * s_.depth);
    y_ = draw(s_.rows * s_.depth);
    weight_ = draw(s_.latents * s_.depth);
    bias_ = draw(s_.latents);
    weight_[0] = std::numeric_limits<float>::quiet_NaN();
    bias_[static_cast<size_t>(s_.latents / 2)] = std::numeric_limits<float>::infinity();
    for (int64_t t = 0; t < s_.rows; ++t) targets_.push_back(static_cast<int64_t>(random() % s_.latents));
    if (s_.rows > 1) targets_[1] = -100;
  }

  // Every result, one after the other, as bytes.
  std::vector<float> run(int threads) const {
    std::vector<float> out;
    const Encoder encoder{view(x_, s_.rows), view(weight_, s_.latents), vector(bias_), {}, nullptr, {}};
    std::vector<float> values(static_cast<size_t>(s_.rows * s_.k));
    std::vector<int32_t> indices(values.size());
    for (const Activation activation : {Activation::kNone, Activation::kRelu, Activation::kAbs}) {
      encode_topk(encoder, s_.k, activation, threads, {DType::kFloat32, values.data(), indices.data()});
      append(values, indices, &out);
    }
    check_topk(indices);
    topk(view(x_, s_.rows), std::min(s_.k, s_.depth), threads, values.data(), indices.data());
    append(values, indices, &out);
    encode_topk(encoder, s_.k, Activation::kRelu, threads, {DType::kFloat32, values.data(), indices.data()});
    append(values, indices, &out);
    run_threshold(encoder, threads, &out);
    run_sparse(values, indices, threads, &out);
    std::vector<float> losses(static_cast<size_t>(4 * s_.rows));
    LossArgs loss{view(x_, s_.rows), {view(y_, s_.rows)}, view(weight_, s_.latents), vector(bias_), targets_.data()};
    loss.softcap = 20;
    float* l = losses.data();
    linear_ce_kl(loss, threads, l, l + s_.rows, l + 2 * s_.rows, l + 3 * s_.rows);
    out.insert(out.end(), losses.begin(), losses.end());
    run_adam(threads, &out);
    return out;
  }

 private:
  Matrix view(const std::vector<float>& m, int64_t rows) const {
    return {m.data(), rows, s_.depth, s_.depth, 1, DType::kFloat32};
  }
  static Matrix vector(const std::vector<float>& v) {
    const auto n = static_cast<int64_t>(v.size());
    return {v.data(), 1, n, n, 1, DType::kFloat32};
  }
  static void append(const std::vector<float>& values, const std::vector<int32_t>& indices, std::vector<float>* out) {
    out->insert(out->end(), values.begin(), values.end());
    out->insert(out->end(), indices.begin(), indices.end());
  }

  void run_threshold(const Encoder& encoder, int threads, std::vector<float>* out) const {
    const float limit = 0.5f;
    const auto codes = encode_threshold(encoder, {&limit, 1, 1, 1, 1, DType::kFloat32}, threads);
    const size_t n = static_cast<size_t>(codes->nnz());
    std::vector<Bf16> values(n);
    std::vector<int32_t> indices(n);
    codes->move_to(DType::kBfloat16, values.data(), indices.data());
    for (size_t i = 0; i < n; ++i) out->push_back(to_float(values[i]) + static_cast<float>(indices[i]));
    out->insert(out->end(), codes->offsets.begin(), codes->offsets.end());
  }

  void run_sparse(const std::vector<float>& values, const std::vector<int32_t>& indices, int threads,
                  std::vector<float>* out) const {
    std::vector<int64_t> offsets;
    for (int64_t t = 0; t <= s_.rows; ++t) offsets.push_back(t * s_.k);
    const int64_t count = s_.rows * s_.k;
    Entries codes{values.data(), DType::kFloat32, indices.data(), offsets.data(), s_.rows, count};
    std::vector<F16> decoded(static_cast<size_t>(s_.rows * s_.depth));
    decode(codes, view(weight_, s_.latents), {}, threads, {decoded.data(), s_.depth, DType::kFloat16});
    for (const F16 value : decoded) out->push_back(to_float(value));
    std::vector<float> dots(static_cast<size_t>(count)), sums(weight_.size()), totals(bias_.size());
    gather_dot(view(x_, s_.rows), view(weight_, s_.latents), codes, threads, {dots.data(), count, DType::kFloat32});
    std::vector<Bf16> products(static_cast<size_t>(3 * count));  // of three matrices that share their rows
    const Matrix stack{x_.data(), 3, s_.depth, 0, 1, DType::kFloat32};
    gather_matmul(stack, s_.depth, view(weight_, s_.latents), codes, threads, {products.data(), 3, DType::kBfloat16});
    for (const Bf16 value : products) out->push_back(to_float(value));
    segment_outer(codes, view(x_, s_.rows), s_.latents, threads, {sums.data(), s_.depth, DType::kFloat32});
    segment_sum(codes, s_.latents, totals.data());
    for (const auto* part : {&dots, &sums, &totals}) out->insert(out->end(), part->begin(), part->end());
    std::vector<int32_t> wrong = indices;
    wrong.back() = static_cast<int32_t>(s_.latents);
    codes.indices = wrong.data();
    try {
      decode(codes, view(weight_, s_.latents), {}, threads, {decoded.data(), s_.depth, DType::kFloat16});
      require(false, "a wrong index is refused");
    } catch (const std::invalid_argument&) {
    }
  }

  // The same weights as rows and as columns, with sums over rows and without.
  void run_adam(int threads, std::vector<float>* out) const {
    for (const bool sums : {false, true}) {
      for (const bool turned : {false, true}) {
        std::vector<float> p = weight_, m(p.size(), 0.5f), v(p.size(), 0.25f);
        Matrix param = view(p, s_.latents);
        if (turned) param = {p.data(), s_.depth, s_.latents, 1, s_.depth, DType::kFloat32};
        const AdamStep step{0.5f, 0.01f, 0.99f, 0.9f, 0.1f, 0.99f, 0.01f, 0.1f, 0.5f, 1e-8f, sums, sums};
        adam_step(step, {param, weight_.data(), m.data(), v.data()}, threads);
        for (const auto* part : {&p, &m, &v}) out->insert(out->end(), part->begin(), part->end());
      }
    }
  }

  // Magnitudes against double precision, NaN first.
  void check_topk(const std::vector<int32_t>& indices) const {
    for (int64_t t = 0; t < s_.rows; ++t) {
      double last = std::numeric_limits<double>::infinity();
      for (int64_t i = 0; i < s_.k; ++i) {
        const int64_t latent = indices[static_cast<size_t>(t * s_.k + i)];
        double score = bias_[static_cast<size_t>(latent)];
        for (int64_t j = 0; j < s_.depth; ++j) {
          score += static_cast<double>(x_[static_cast<size_t>(t * s_.depth + j)]) *
                   weight_[static_cast<size_t>(latent * s_.depth + j)];
        }
        if (std::isnan(score)) {
          require(i == 0, "NaN ranks first");
          continue;
        }
        require(std::abs(score) <= last * (1 + 1e-4) + 1e-4, "values descend");
        last = std::abs(score);
      }
    }
  }

  Shape s_;
  std::vector<float> x_, y_, weight_, bias_;
  std::vector<int64_t> targets_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (float_bits(a[i]) != float_bits(b[i])) return false;
  }
  return true;
}

void test_exceptions() {
  try {
    parallel_for(1000, 4, [](int64_t task, int) {
      if (task == 617) throw std::runtime_error("task 617");
    });
    require(false, "an exception reaches the caller");
  } catch (const std::runtime_error& error) {
    require(std::string(error.what()) == "task 617", "the exception is the task's own");
  }
}

// Plain memory, handed to tasks and back in many small jobs: what the pool's mutex has to order on a weak machine.
void test_publication() {
  constexpr int64_t kTasks = 16;
  int64_t in[kTasks] = {}, out[kTasks] = {};
  for (int64_t round = 0; round < 2000; ++round) {
    for (int64_t i = 0; i < kTasks; ++i) in[i] = round * kTasks + i;
    parallel_for(kTasks, 4, [&](int64_t task, int) { out[task] = in[task] + out[task]; });
    for (int64_t i = 0; i < kTasks; ++i) {
      require(out[i] == in[i] + round * (round - 1) / 2 * kTasks + round * i,
              "tasks see what was written, and are seen");
    }
  }
}

void test_concurrent(const Problem& problem, const std::vector<float>& want) {
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 3; ++round) require(same_bits(problem.run(3), want), "concurrent callers agree");
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void test_fork(const Problem& problem, const std::vector<float>& want) {
  const pid_t child = fork();
  if (child == 0) _exit(same_bits(problem.run(3), want) ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked child computes the same");
}

}  // namespace

int main() {
  const std::string levels = supported_levels();
  for (size_t begin = 0; begin < levels.size(); begin = levels.find(',', begin) + 1) {
    set_level(levels.substr(begin, levels.find(',', begin) - begin).c_str());
    for (const Shape& shape : {Shape{1, 1, 1, 1}, Shape{3, 5, 7, 7}, Shape{13, 33, 97, 20}, Shape{70, 300, 700, 150}}) {
      const Problem problem(shape, 7);
      const std::vector<float> alone = problem.run(1);
      for (int threads = 2; threads <= 5; ++threads) {
        require(same_bits(problem.run(threads), alone), "thread counts agree");
      }
      test_concurrent(problem, alone);
#if !defined(__SANITIZE_THREAD__)  // which does not follow a multi-threaded process through fork
      test_fork(problem, alone);
#endif
    }
    if (levels.find(',', begin) == std::string::npos) break;
  }
  test_exceptions();
  test_publication();
  std::puts("ok");
  return 0;
}
