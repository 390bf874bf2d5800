// The CPU primitives. Shapes are those of the Python backend protocol; every function may use up to `threads` threads,
// gives the same bits for any number of them, and throws std::invalid_argument that names the argument at fault.
//
// Working memory, whatever T and F are: 16 MiB of rows and packed rows, 16 MiB (or 4 MiB per thread, if that is more)
// of candidates, counts or softmax statistics, as much again where a screen needs long lists of candidates, and about
// 1 MiB per thread. Threshold codes are held twice while they
// are copied out; segment sums take 12 bytes per entry and 8 per latent; k in the tens of thousands takes 24 * k bytes
// per thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/types.h"
#include "cpu/memory.h"
#include "cpu/encode/screens/prepared.h"

namespace saekernels {

enum class Activation : int { kNone = 0, kRelu = 1, kAbs = 2 };

// Sparse entries grouped by row: row t owns entries [offsets[t], offsets[t + 1]). Values may be absent.
struct Entries {
  const void* values = nullptr;
  DType dtype = DType::kFloat32;
  const int32_t* indices = nullptr;
  const int64_t* offsets = nullptr;
  int64_t rows = 0;
  int64_t count = 0;
};

// Bias-like vectors may be absent (data == nullptr); they have one row.
struct Encoder {
  Matrix x;         // [T, d]
  Matrix weight;    // [F, d]
  Matrix bias;      // [F]
  Matrix pre_bias;  // [d]
  const Prepared* prepared = nullptr;
  Matrix scale;  // [F], above 0: what is compared are scores times it, and codes are the scores themselves
};

// Where top-k codes go: values [T, k] of this dtype and indices [T, k], contiguous.
struct TopkOut {
  DType dtype;
  void* values;
  int32_t* indices;
};

void encode_topk(const Encoder& encoder, int64_t k, Activation activation, int threads, const TopkOut& out);
void topk(const Matrix& scores, int64_t k, int threads, void* values, int32_t* indices);

// Threshold codes in row order. They are kept here until the caller knows nnz and has made room for them.
class ThresholdCodes {
 public:
  struct Block {
    Buffer<float> values;
    Buffer<int32_t> indices;
    int64_t count;
  };

  std::vector<int64_t> offsets;  // [T + 1]
  std::vector<Block> blocks;

  int64_t nnz() const { return offsets.back(); }
  // Copies out (values rounded to dtype) and frees each block once it is copied.
  void move_to(DType dtype, void* values, int32_t* indices);
};

// threshold holds one element or F.
std::unique_ptr<ThresholdCodes> encode_threshold(const Encoder& encoder, const Matrix& threshold, int threads);

void decode(const Entries& codes, const Matrix& weight, const Matrix& bias, int threads, const MutableRows& out);
// out [nnz], contiguous.
void gather_dot(const Matrix& a, const Matrix& weight, const Entries& entries, int threads, const MutableRows& out);
// out [nnz, B]; `first` is row 0 of each of B matrices [B, d], whose rows are `row_stride` elements apart.
void gather_matmul(const Matrix& first, int64_t row_stride, const Matrix& weight, const Entries& entries, int threads,
                   const MutableRows& out);
// out [F, d], contiguous columns.
void segment_outer(const Entries& codes, const Matrix& a, int64_t segments, int threads, const MutableRows& out);
// out [F] in the values' dtype.
void segment_sum(const Entries& codes, int64_t segments, void* out);

// One step of Adam in one pass over memory; `step` as in levels/level.h. Sums over rows only where it projects or makes
// unit norms: else any matrix of the elements will do.
struct AdamStep;
struct AdamTensors;
void adam_step(const AdamStep& step, const AdamTensors& at, int threads);

struct LossArgs {
  Matrix h_p;               // [T, d]
  std::vector<Matrix> h_q;  // R streams [T, d], each compared with h_p
  Matrix weight;            // [V, d]
  Matrix bias;              // [V] or absent
  const int64_t* targets = nullptr;
  float softcap = 0;  // 0: none
  int64_t ignore_index = -100;
};

// ce_p [T], and ce_q, kl and agree, each [R, T], fp32.
void linear_ce_kl(const LossArgs& args, int threads, float* ce_p, float* ce_q, float* kl, float* agree);

// Of each [T] fp32: the losses of that call, and the gradients with respect to them.
struct LossGrads {
  const float *ce_p, *ce_q, *kl;
  const float *grad_ce_p, *grad_ce_q, *grad_kl;
};

// Those whose data is null are not computed. Columns are contiguous; bias is one row of V.
struct LossInputGrads {
  MutableRows h_p, h_q;  // [T, d]
  MutableRows weight;    // [V, d]
  MutableRows bias;
};

// Working memory: T * (d + 768) elements, a few times; 768 rows of W_U twice; 4 * V bytes for bias. Without the
// gradient of W_U, T counts as at most 2,048.
void linear_ce_kl_backward(const LossArgs& args, const LossGrads& grads, int threads, const LossInputGrads& out);

}  // namespace saekernels
