// Element access by storage type, and the conversions between stored rows and fp32.
#pragma once

namespace saekernels {
namespace {

// Calls fn with a null pointer whose type tells the storage type of `dtype`.
template <class Fn>
inline void with_type(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(static_cast<const float*>(nullptr));
    case DType::kBfloat16:
      return fn(static_cast<const Bf16*>(nullptr));
    case DType::kFloat16:
      return fn(static_cast<const F16*>(nullptr));
  }
}

template <class T>
inline void load_strided(const T* src, int64_t stride, int64_t count, float* out) {
  int64_t j = 0;
  if (stride == 1) {
    for (; j + Vec::kWidth <= count; j += Vec::kWidth) Vec::load(src + j).store(out + j);
  }
  for (; j < count; ++j) out[j] = to_float(src[j * stride]);
}

void load_row(const Matrix& m, int64_t row, int64_t col, int64_t count, float* out) {
  with_type(m.dtype, [&](auto* tag) {
    load_strided(static_cast<decltype(tag)>(element(m, row, col)), m.col_stride, count, out);
  });
}

void store_row(const float* in, int64_t count, DType dtype, void* out) {
  with_type(dtype, [&](auto* tag) {
    auto* to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>*>(out);
    int64_t j = 0;
    for (; j + Vec::kWidth <= count; j += Vec::kWidth) Vec::load(in + j).store(to + j);
    for (; j < count; ++j) from_float(in[j], to + j);
  });
}

}  // namespace
}  // namespace saekernels
