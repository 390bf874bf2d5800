// The products of the loss, in fp32 or in bf16 where the machine multiplies it, behind one interface: packed operands,
// and c[rows of the left][columns of the right] (+)= their dots, summed in an order that depends on the depth alone.
#pragma once

#include <algorithm>
#include <memory>

#include "common/types.h"
#include "cpu/levels/level.h"
#include "cpu/memory.h"
#include "cpu/threads/parallel.h"

namespace saekernels {

// Parts of operands begin at multiples of these: every panel of every level divides them.
constexpr int64_t kLeftStep = 96;
constexpr int64_t kRightStep = kMaxPanel;

inline Matrix transposed(const Matrix& m) { return {m.data, m.cols, m.rows, m.col_stride, m.row_stride, m.dtype}; }

// Rows [first, first + count) of a matrix.
inline Matrix rows_of(const Matrix& m, int64_t first, int64_t count) {
  return {element(m, first, 0), count, m.cols, m.row_stride, m.col_stride, m.dtype};
}

// Rows ids[0 .. count) of m: where they lie if they follow each other, else copied to `copy`.
Matrix pick_rows(const Matrix& m, const int64_t* ids, int64_t count, Buffer<char>* copy);

class Products {
 public:
  virtual ~Products() = default;

  // What `terms` are padded to, with zeros.
  virtual int64_t depth(int64_t terms) const = 0;
  // An operand of so many lines (rows of the left, columns of the right).
  Buffer<char> operand(int64_t lines, int64_t depth) const {
    return Buffer<char>(round_up(lines, kLeftStep) * depth * element_bytes());
  }
  // Where line `line`, a multiple of kLeftStep or kRightStep, begins.
  char* part(const Buffer<char>& operand, int64_t line, int64_t depth) const {
    return operand.get() + line * depth * element_bytes();
  }

  // Rows of m become rows of the left operand at `out`, its columns terms from first_term (a multiple of kLeftStep) on.
  virtual void pack_left(const Matrix& m, int64_t first_term, int64_t depth, char* out) const = 0;
  // Rows of m become columns of the right operand at `out`, and zeros fill them up to kRightStep.
  virtual void pack_right(const Matrix& m, int64_t depth, char* out) const = 0;
  void pack_all_right(const Matrix& m, int64_t depth, int workers, const Buffer<char>& out) const {
    parallel_for(ceil_div(m.rows, kRightStep), workers, [&](int64_t task, int) {
      const int64_t first = task * kRightStep;
      pack_right(rows_of(m, first, std::min(kRightStep, m.rows - first)), depth, part(out, first, depth));
    });
  }
  // z[count words][ld], at most kLeftStep words and `tokens` columns, a multiple of kRightStep: to the right operand
  // whose columns are tokens and to the left operand whose rows are words, where they are not null.
  virtual void pack_slopes(const float* z, int64_t ld, int64_t count, int64_t tokens, char* right, int64_t first_word,
                           int64_t words, char* left, int64_t first_token, int64_t all_tokens) const = 0;
  // c[rows][ld] (+)= left times right, whose columns are a multiple of kRightStep; c has room for rows up to one of 32.
  virtual void multiply(const char* left, int64_t rows, const char* right, int64_t columns, int64_t depth, float* c,
                        int64_t ld, bool add) const = 0;

 protected:
  virtual int64_t element_bytes() const = 0;
};

// Whether the loss of such a head is computed from bf16 products.
bool multiplies_bf16(const Level& simd, const Matrix& weight);

std::unique_ptr<Products> make_products(const Level& simd, const Matrix& weight);

}  // namespace saekernels
