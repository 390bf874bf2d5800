// What kernels need of the compiler: CUDA's own runtime, or, where g++ compiles the same sources for tests, an
// emulation.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(SK_CUDA_RUNTIME)
#include <cuda_runtime.h>
#else
#include "tests/cuda_on_host.h"
#endif

#if defined(__CUDACC__)
namespace saekernels {
namespace gpu {

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, int threads, cudaStream_t stream, Args... args) {
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  kernel<<<grid, threads, 0, stream>>>(static_cast<Params>(args)...);
  return cudaGetLastError();
}

}  // namespace gpu
}  // namespace saekernels
#endif

#define SK_RETURN_IF_ERROR(call)                  \
  do {                                            \
    const cudaError_t sk_error = (call);          \
    if (sk_error != cudaSuccess) return sk_error; \
  } while (0)
