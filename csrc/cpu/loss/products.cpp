#include "cpu/loss/products.h"

#include <algorithm>
#include <cstring>

namespace saekernels {
namespace {

class Fp32Products final : public Products {
 public:
  explicit Fp32Products(const Level& simd) : simd_(simd) {}

  int64_t depth(int64_t terms) const override { return terms; }

  // Panels [depth][mr].
  void pack_left(const Matrix& m, int64_t first_term, int64_t depth, char* out) const override {
    const int64_t mr = simd_.mr;
    float* to = reinterpret_cast<float*>(out) + first_term * mr;
    if (m.col_stride != 1) return pack_turned(transposed(m), depth, to);
    Buffer<float> row(m.cols);
    for (int64_t r = 0; r < m.rows; ++r) {
      simd_.load_row(m, r, 0, m.cols, row.get());
      float* column = to + r / mr * mr * depth + r % mr;
      for (int64_t k = 0; k < m.cols; ++k) column[k * mr] = row[k];
    }
  }

  // Panels [depth][nr].
  void pack_right(const Matrix& m, int64_t depth, char* out) const override {
    float* to = reinterpret_cast<float*>(out);
    for (int64_t row = 0; row < round_up(m.rows, kRightStep); row += simd_.nr) {
      simd_.pack_panel(m, row, std::clamp<int64_t>(m.rows - row, 0, simd_.nr), to + row * depth);
    }
  }

  void pack_slopes(const float* z, int64_t ld, int64_t count, int64_t tokens, char* right, int64_t first_word,
                   int64_t words, char* left, int64_t first_token, int64_t all_tokens) const override {
    const int64_t mr = simd_.mr, nr = simd_.nr;
    float *columns = reinterpret_cast<float*>(right), *rows = reinterpret_cast<float*>(left);
    for (int64_t word = 0; word < count; ++word) {
      const float* from = z + word * ld;
      for (int64_t t = 0; columns != nullptr && t < tokens; t += nr) {
        std::memcpy(columns + t * words + (first_word + word) * nr, from + t, static_cast<size_t>(nr) * sizeof(float));
      }
      if (rows == nullptr) continue;
      float* panel = rows + word / mr * mr * all_tokens + word % mr;
      for (int64_t t = 0; t < std::min(tokens, all_tokens - first_token); ++t) panel[(first_token + t) * mr] = from[t];
    }
  }

  void multiply(const char* left, int64_t rows, const char* right, int64_t columns, int64_t depth, float* c, int64_t ld,
                bool add) const override {
    simd_.gemm_tile(reinterpret_cast<const float*>(left), rows, reinterpret_cast<const float*>(right),
                    columns / simd_.nr, depth, c, ld, add);
  }

 protected:
  int64_t element_bytes() const override { return sizeof(float); }

 private:
  // Terms [terms][rows of the operand]: each brings mr floats of every panel.
  void pack_turned(const Matrix& terms, int64_t depth, float* to) const {
    const int64_t mr = simd_.mr;
    Buffer<float> copy(terms.rows * terms.cols);
    for (int64_t k = 0; k < terms.rows; ++k) simd_.load_row(terms, k, 0, terms.cols, copy.get() + k * terms.cols);
    for (int64_t row = 0; row < terms.cols; row += mr) {
      const size_t bytes = static_cast<size_t>(std::min(mr, terms.cols - row)) * sizeof(float);
      for (int64_t k = 0; k < terms.rows; ++k) {
        std::memcpy(to + row * depth + k * mr, copy.get() + k * terms.cols + row, bytes);
      }
    }
  }

  const Level& simd_;
};

// Operands as simd/bf16.h has them: the left as its rows, the right as its latents.
class Bf16Products final : public Products {
 public:
  explicit Bf16Products(const Level& simd) : simd_(simd) {}

  int64_t depth(int64_t terms) const override { return round_up(terms, kScreenDepth); }

  void pack_left(const Matrix& m, int64_t first_term, int64_t depth, char* out) const override {
    Bf16* to = reinterpret_cast<Bf16*>(out) + first_term * kScreenPanel;
    for (int64_t row = 0; row < round_up(m.rows, 2 * kScreenPanel); row += kScreenPanel) {
      for (int64_t term = 0; term < m.cols; term += kScreenDepth) {
        pack_block(m, row, term, to + row * depth + term * kScreenPanel);
      }
    }
  }

  void pack_right(const Matrix& m, int64_t depth, char* out) const override {
    Bf16* to = reinterpret_cast<Bf16*>(out);
    std::memset(out, 0, static_cast<size_t>(round_up(m.rows, kRightStep) * depth) * sizeof(Bf16));
    for (int64_t row = 0; row < m.rows; ++row) {
      Bf16* column = to + row / kScreenPanel * kScreenPanel * depth + 2 * (row % kScreenPanel);
      for (int64_t k = 0; k < m.cols; ++k) column[k / 2 * 2 * kScreenPanel + k % 2] = at(m, row, k);
    }
  }

  void pack_slopes(const float* z, int64_t ld, int64_t count, int64_t tokens, char* right, int64_t first_word,
                   int64_t words, char* left, int64_t first_token, int64_t all_tokens) const override {
    Bf16 *columns = reinterpret_cast<Bf16*>(right), *rows = reinterpret_cast<Bf16*>(left);
    const int padded = static_cast<int>(round_up(count, kScreenDepth));
    for (int64_t t = 0; t < tokens; t += kTokenLanes) {
      const int64_t token = first_token + t, block = token / kScreenDepth * kScreenDepth * kScreenPanel;
      simd_.round_slopes(z + t, ld, static_cast<int>(count), padded,
                         columns != nullptr ? columns + t * words + first_word * kTokenLanes : nullptr,
                         rows != nullptr ? rows + block + token % kScreenDepth : nullptr, kScreenPanel * all_tokens);
    }
  }

  void multiply(const char* left, int64_t rows, const char* right, int64_t columns, int64_t depth, float* c, int64_t ld,
                bool add) const override {
    simd_.bf16_tile(reinterpret_cast<const Bf16*>(left), rows, reinterpret_cast<const Bf16*>(right),
                    columns / kScreenPanel, depth, c, ld, add);
  }

 protected:
  int64_t element_bytes() const override { return sizeof(Bf16); }

 private:
  static Bf16 at(const Matrix& m, int64_t row, int64_t column) {
    return static_cast<const Bf16*>(m.data)[row * m.row_stride + column * m.col_stride];
  }

  // out[16 rows][32 terms], zeros past the matrix.
  void pack_block(const Matrix& m, int64_t row, int64_t term, Bf16* out) const {
    const int64_t rows = std::clamp<int64_t>(m.rows - row, 0, kScreenPanel);
    const int64_t terms = std::min(m.cols - term, kScreenDepth);
    const Bf16* from = static_cast<const Bf16*>(m.data) + row * m.row_stride + term * m.col_stride;
    if (m.row_stride == 1 && rows == kScreenPanel && terms == kScreenDepth) {
      return simd_.transpose_bf16(from, m.col_stride, out);
    }
    for (int64_t r = 0; r < kScreenPanel; ++r, out += kScreenDepth) {
      const int64_t filled = r < rows ? terms : 0;
      if (m.col_stride == 1 && filled == kScreenDepth) {
        std::memcpy(out, from + r * m.row_stride, kScreenDepth * sizeof(Bf16));
        continue;
      }
      for (int64_t k = 0; k < kScreenDepth; ++k)
        out[k] = k < filled ? from[r * m.row_stride + k * m.col_stride] : Bf16{0};
    }
  }

  const Level& simd_;
};

}  // namespace

Matrix pick_rows(const Matrix& m, const int64_t* ids, int64_t count, Buffer<char>* copy) {
  if (count == 0 || ids[count - 1] - ids[0] == count - 1) return rows_of(m, count == 0 ? 0 : ids[0], count);
  const int64_t size = element_size(m.dtype);
  *copy = Buffer<char>(count * m.cols * size);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t k = 0; k < m.cols; ++k) {
      std::memcpy(copy->get() + (r * m.cols + k) * size, element(m, ids[r], k), static_cast<size_t>(size));
    }
  }
  return {copy->get(), count, m.cols, m.cols, 1, m.dtype};
}

bool multiplies_bf16(const Level& simd, const Matrix& weight) {
  return simd.bf16_fast && weight.dtype == DType::kBfloat16 && weight.cols > 0;
}

std::unique_ptr<Products> make_products(const Level& simd, const Matrix& weight) {
  if (multiplies_bf16(simd, weight)) return std::make_unique<Bf16Products>(simd);
  return std::make_unique<Fp32Products>(simd);
}

}  // namespace saekernels
