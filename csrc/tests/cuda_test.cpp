// The kernels of csrc/cuda, run on the host (cuda_on_host.h), against sorts of the standard library.
//
// Outputs and scratch start as rubbish and have guards behind them; every case runs with several orders of threads.

#include "cuda/group_by_latent.cu"
#include "cuda/select.cu"
#include "cuda/topk.cu"

#include <cmath>
#include <limits>
#include <string>

using namespace saekernels;

namespace {

constexpr int kSeeds = 3;
constexpr size_t kGuard = 16;
int failures = 0;

void check(bool good, const std::string& what) {
  if (good) return;
  if (++failures <= 20) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

template <class T>
struct Buffer {
  size_t size;
  std::vector<T> data;
  explicit Buffer(size_t size_) : size(size_), data(size_ + kGuard) {
    auto* bytes = reinterpret_cast<unsigned char*>(data.data());
    std::fill(bytes, bytes + data.size() * sizeof(T), 0xa5);
  }
  T* get() { return data.data(); }
  bool guarded() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(data.data() + size);
    return std::all_of(bytes, bytes + kGuard * sizeof(T), [](unsigned char byte) { return byte == 0xa5; });
  }
};

std::mt19937 numbers{1};

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(numbers); }

float score(int kind) {
  if (kind == 0) return std::normal_distribution<float>()(numbers);
  if (kind == 1) return static_cast<float>(uniform(-3, 3));  // ties
  if (kind == 2) return 1.5f;
  const float special[] = {std::nanf(""), -std::nanf(""), INFINITY, -INFINITY, 0.0f,
                           -0.0f,         1e-42f,         -1e-42f,  3e38f,     1.0f};
  return special[uniform(0, 9)];
}

const char* const kKinds[] = {"normal", "ties", "equal", "special"};

// Best first: higher score, then lower index, NaN on top, zeros equal.
std::vector<int> ranked(const std::vector<float>& scores) {
  std::vector<int> order(scores.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const float x = scores[a], y = scores[b];
    if (std::isnan(x) || std::isnan(y)) return std::isnan(x) && !std::isnan(y);
    return x > y;
  });
  return order;
}

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : float_bits(a) == float_bits(b); }

void test_select(int64_t rows, int capacity, int k, int kind, bool absolute, bool relu) {
  std::vector<int64_t> candidates(rows * capacity);
  std::vector<int32_t> counts(rows);
  std::vector<std::vector<float>> values(rows);
  std::vector<std::vector<int>> latents(rows);
  for (int64_t row = 0; row < rows; ++row) {
    const int choices[] = {0, std::max(0, k - 1), k, capacity, capacity + 7, uniform(0, capacity)};
    counts[row] = choices[row % 6];
    for (int i = 0; i < capacity; ++i) {
      const float value = score(kind);
      const int latent = i * 3 + static_cast<int>(row);
      const bool negative = absolute && value < 0;
      candidates[row * capacity + i] = signed_key(make_key(absolute ? std::fabs(value) : value, latent, negative));
      values[row].push_back(value);
      latents[row].push_back(latent);
    }
  }
  Buffer<float> out(rows * k);
  Buffer<int32_t> indices(rows * k);
  gpu::select(candidates.data(), counts.data(), rows, capacity, k, relu, DType::kFloat32, out.get(), indices.get(),
              nullptr);
  const std::string what = "select " + std::string(kKinds[kind]) + " k " + std::to_string(k);
  check(out.guarded() && indices.guarded(), what + ": guard");
  for (int64_t row = 0; row < rows; ++row) {
    const int n = std::min(counts[row], capacity);
    std::vector<float> ranks(values[row].begin(), values[row].begin() + n);
    if (absolute) {
      for (float& value : ranks) value = std::fabs(value);
    }
    const std::vector<int> order = ranked(ranks);
    for (int i = 0; i < k; ++i) {
      float want = i < n ? values[row][order[i]] : 0.0f;
      if (want == 0) want = 0.0f;
      if (relu && want < 0) want = 0.0f;
      check(same(out.data[row * k + i], want), what + ": value");
      check(indices.data[row * k + i] == (i < n ? latents[row][order[i]] : i), what + ": index");
    }
  }
}

void store(float value, float* out) { *out = value; }
void store(float value, Bf16* out) { from_float(value, out); }
void store(float value, F16* out) { from_float(value, out); }

template <class T>
void test_topk(DType dtype, int64_t rows, int columns, int k, int kind, int row_gap, int col_stride, int processors) {
  const int64_t row_stride = static_cast<int64_t>(columns) * col_stride + row_gap;
  std::vector<T> storage(rows * row_stride + 1);
  std::vector<std::vector<float>> scores(rows);
  for (int64_t row = 0; row < rows; ++row) {
    for (int i = 0; i < columns; ++i) {
      T* place = &storage[row * row_stride + static_cast<int64_t>(i) * col_stride];
      store(score(kind), place);
      scores[row].push_back(to_float(*place));
    }
  }
  Matrix m;
  m.data = storage.data();
  m.rows = rows;
  m.cols = columns;
  m.row_stride = row_stride;
  m.col_stride = col_stride;
  m.dtype = dtype;
  Buffer<int64_t> scratch(gpu::topk_scratch(rows, columns, k, processors));
  Buffer<T> out(rows * k);
  Buffer<int32_t> indices(rows * k);
  gpu::topk(m, k, processors, scratch.get(), out.get(), indices.get(), nullptr);
  const std::string what = "topk " + std::string(kKinds[kind]) + " columns " + std::to_string(columns) + " k " +
                           std::to_string(k) + " scratch " + std::to_string(scratch.size);
  check(scratch.guarded() && out.guarded() && indices.guarded(), what + ": guard");
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<int> order = ranked(scores[row]);
    for (int i = 0; i < k; ++i) {
      check(indices.data[row * k + i] == order[i], what + ": index");
      check(same(to_float(out.data[row * k + i]), scores[row][order[i]]), what + ": value");
    }
  }
}

void test_group(int64_t count, int latents, bool hot) {
  std::vector<int32_t> indices(count);
  for (int32_t& index : indices) index = hot && uniform(0, 1) ? latents / 2 : uniform(0, latents - 1);
  Buffer<int32_t> order(count);
  Buffer<int64_t> starts(latents + 1);
  Buffer<char> scratch(gpu::group_scratch(count));
  gpu::group_by_latent(indices.data(), count, latents, scratch.get(), order.get(), starts.get(), nullptr);
  std::vector<int32_t> want(count);
  for (int64_t e = 0; e < count; ++e) want[e] = static_cast<int32_t>(e);
  std::stable_sort(want.begin(), want.end(), [&](int a, int b) { return indices[a] < indices[b]; });
  const std::string what = "group " + std::to_string(count) + " of " + std::to_string(latents);
  check(std::equal(want.begin(), want.end(), order.data.begin()), what + ": order");
  int64_t at = 0;
  for (int latent = 0; latent <= latents; ++latent) {
    while (at < count && indices[want[at]] < latent) ++at;
    check(starts.data[latent] == at, what + ": starts");
  }
  check(order.guarded() && starts.guarded() && scratch.guarded(), what + ": guard");
}

void test_keys() {
  const float values[] = {-INFINITY, -1.0f, -1e-42f, 0.0f, 1e-42f, 2.0f, INFINITY, std::nanf("")};
  for (int i = 0; i < 8; ++i) {
    const uint64_t key = make_key(values[i], 5, false);
    check(unsigned_key(signed_key(key)) == key, "keys: there and back");
    check(same(key_value(key), values[i]), "keys: value");
    check(signed_key(make_key(values[i], 4, false)) > signed_key(key), "keys: lower index first");
    if (i > 0) check(signed_key(key) > signed_key(make_key(values[i - 1], 0, false)), "keys: order of signed keys");
  }
  check(key_value(make_key(2.0f, 3, true)) == -2.0f, "keys: sign");
}

}  // namespace

int main() {
  test_keys();
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::random_order.seed(seed);
    for (int kind = 0; kind < 4; ++kind) {
      test_select(7, 300, 32, kind, kind % 2 == 1, kind == 0);
      test_select(6, 1500, 64, kind, kind % 2 == 0, false);
      test_topk<float>(DType::kFloat32, 3, 700, 64, kind, 5, 1, 1);
      test_topk<Bf16>(DType::kBfloat16, 2, 3000, 33, kind, 0, 2, 1);
      test_topk<F16>(DType::kFloat16, 1, 20000, 40, kind, 0, 1, 4);  // a row shared by blocks
    }
    test_select(3, 8192, 2048, 0, false, true);
    test_select(2, 1, 1, 3, false, false);
    test_select(0, 64, 8, 0, false, false);
    test_topk<float>(DType::kFloat32, 2, 2048, 2048, 1, 0, 1, 1);
    test_topk<float>(DType::kFloat32, 2, 37, 37, 0, 0, 1, 64);
    test_topk<float>(DType::kFloat32, 1, 1, 1, 0, 0, 1, 64);
    for (int latents : {1, 2, 256, 257, 70000}) {
      test_group(5000, latents, false);
      test_group(2048 + 1, latents, true);
      test_group(1, latents, false);
      test_group(0, latents, false);
    }
  }
  if (failures != 0) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
