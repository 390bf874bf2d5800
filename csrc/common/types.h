// Element types and matrix views shared by every native backend. No framework headers here.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SK_HD __host__ __device__
#else
#define SK_HD
#endif

// Internal linkage on purpose: each SIMD level compiles these with its own instruction set, and a shared
// (weak) copy could be the one that the machine at hand can't execute.
#define SK_INLINE SK_HD static inline

namespace saekernels {

enum class DType : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// Storage types: the bits only, so that pointers carry their meaning.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// Strides count elements, not bytes. A vector is a matrix of one row.
struct Matrix {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  DType dtype = DType::kFloat32;
};

struct MutableRows {
  void* data = nullptr;
  int64_t row_stride = 0;  // columns are contiguous
  DType dtype = DType::kFloat32;
};

SK_INLINE int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

SK_INLINE const void* element(const Matrix& m, int64_t row, int64_t col) {
  return static_cast<const char*>(m.data) + (row * m.row_stride + col * m.col_stride) * element_size(m.dtype);
}

SK_INLINE void* row_of(const MutableRows& m, int64_t row) {
  return static_cast<char*>(m.data) + row * m.row_stride * element_size(m.dtype);
}

}  // namespace saekernels
