// saekernels._cuda: addresses, sizes and a stream in, an exception for each CUDA error out. Tensors are torch's, in
// Python.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/kernels.h"

namespace py = pybind11;
using namespace saekernels;

namespace {

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

void raise_on(cudaError_t error, const char* kernel) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

DType dtype_of(int code) {
  if (code < 0 || code > 2) throw std::invalid_argument("dtype code: got " + std::to_string(code) + ", need 0, 1 or 2");
  return static_cast<DType>(code);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Native CUDA kernels of saekernels. Internal: use saekernels.backends.cuda.";
  const py::call_guard<py::gil_scoped_release> unlocked;
  m.attr("MOST_KEPT") = gpu::kMostKept;
  m.def("compiler", [] { return SK_CUDA_COMPILER; });
  m.def("architectures", [] { return SK_CUDA_ARCHITECTURES; });
  m.def(
      "select",
      [](uintptr_t candidates, uintptr_t counts, int64_t rows, int64_t capacity, int k, bool relu, int dtype,
         uintptr_t values, uintptr_t indices, uintptr_t stream) {
        raise_on(gpu::select(address<const int64_t>(candidates), address<const int32_t>(counts), rows, capacity, k,
                             relu, dtype_of(dtype), address<void>(values), address<int32_t>(indices),
                             address<CUstream_st>(stream)),
                 "select");
      },
      unlocked);
  m.def("topk_scratch", &gpu::topk_scratch);
  m.def(
      "topk",
      [](uintptr_t scores, int64_t rows, int64_t columns, int64_t row_stride, int64_t col_stride, int dtype, int k,
         int multiprocessors, uintptr_t scratch, uintptr_t values, uintptr_t indices, uintptr_t stream) {
        Matrix matrix;
        matrix.data = address<const void>(scores);
        matrix.rows = rows;
        matrix.cols = columns;
        matrix.row_stride = row_stride;
        matrix.col_stride = col_stride;
        matrix.dtype = dtype_of(dtype);
        raise_on(gpu::topk(matrix, k, multiprocessors, address<int64_t>(scratch), address<void>(values),
                           address<int32_t>(indices), address<CUstream_st>(stream)),
                 "topk");
      },
      unlocked);
  m.def("group_scratch", &gpu::group_scratch);
  m.def(
      "group_by_latent",
      [](uintptr_t indices, int64_t count, int64_t latents, uintptr_t scratch, uintptr_t order, uintptr_t starts,
         uintptr_t stream) {
        raise_on(gpu::group_by_latent(address<const int32_t>(indices), count, latents, address<void>(scratch),
                                      address<int32_t>(order), address<int64_t>(starts), address<CUstream_st>(stream)),
                 "group_by_latent");
      },
      unlocked);
}
