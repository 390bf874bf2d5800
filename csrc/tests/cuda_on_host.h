// Runs CUDA kernels on the host, so that what they compute can be tested without a GPU: the same sources, compiled by
// g++.
//
// Each CUDA thread is a fiber. Fibers run in an order shuffled by a seed until they wait at a barrier or for their
// warp, so a missing barrier changes results between seeds, and blocks run in a shuffled order too. A barrier that not
// all threads of a block reach, or a warp's exchange that part of it misses, ends the program with a message. Shared
// memory keeps what the last block left there. What this cannot show: memory ordering weaker than the host's, timing,
// registers.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)
#define __shared__ static

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace saekernels {
namespace emulation {

constexpr size_t kStackBytes = 64 * 1024;
constexpr int kWarpSize = 32;

enum class State { kReady, kAtBarrier, kAtMatch, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kReady;
  int offered = 0;
  unsigned answer = 0;
  void* fake_stack = nullptr;
};

inline std::mt19937 random_order{0};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline int current = 0;
inline std::function<void()> body;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_size = 0;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "cuda_on_host: block (%u, %u): %s\n", blockIdx.x, blockIdx.y, message);
  std::abort();
}

inline void enter_fiber(int id) {
  current = id;
  threadIdx = dim3(static_cast<unsigned>(id), 0, 0);
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fibers[id].stack.get(), kStackBytes);
#endif
  swapcontext(&scheduler, &fibers[id].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void leave_fiber(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_size);
#endif
  swapcontext(&fiber.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

inline void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  body();
  leave_fiber(State::kDone);
}

// Answers every warp of which all threads wait for a match.
inline bool answer_warps() {
  bool any = false;
  for (size_t first = 0; first < fibers.size(); first += kWarpSize) {
    const size_t last = std::min(first + kWarpSize, fibers.size());
    size_t waiting = 0;
    for (size_t i = first; i < last; ++i) waiting += fibers[i].state == State::kAtMatch;
    if (waiting != last - first) continue;
    for (size_t i = first; i < last; ++i) {
      fibers[i].answer = 0;
      for (size_t j = first; j < last; ++j) {
        if (fibers[j].offered == fibers[i].offered) fibers[i].answer |= 1u << (j - first);
      }
    }
    for (size_t i = first; i < last; ++i) fibers[i].state = State::kReady;
    any = true;
  }
  return any;
}

inline void run_block(int threads) {
  fibers = std::vector<Fiber>(threads);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  for (;;) {
    std::shuffle(order.begin(), order.end(), random_order);
    bool ran = false;
    for (int id : order) {
      if (fibers[id].state != State::kReady) continue;
      enter_fiber(id);
      ran = true;
    }
    if (ran || answer_warps()) continue;
    size_t at_barrier = 0, done = 0;
    for (const Fiber& fiber : fibers) {
      at_barrier += fiber.state == State::kAtBarrier;
      done += fiber.state == State::kDone;
    }
    if (done == fibers.size()) return;
    if (at_barrier != fibers.size()) fail("a barrier or a warp's exchange was not reached by all threads");
    for (Fiber& fiber : fibers) fiber.state = State::kReady;
  }
}

}  // namespace emulation

namespace gpu {

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, int threads, cudaStream_t, Args... args) {
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  emulation::body = [=] { kernel(static_cast<Params>(args)...); };
  std::vector<dim3> blocks;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y);
  }
  std::shuffle(blocks.begin(), blocks.end(), emulation::random_order);
  for (const dim3& block : blocks) {
    blockIdx = block;
    emulation::run_block(threads);
  }
  return cudaSuccess;
}

}  // namespace gpu
}  // namespace saekernels

inline void __syncthreads() { saekernels::emulation::leave_fiber(saekernels::emulation::State::kAtBarrier); }

inline unsigned __match_any_sync(unsigned mask, int value) {
  using namespace saekernels::emulation;
  if (mask != 0xffffffffu) fail("only whole warps may match");
  fibers[current].offered = value;
  leave_fiber(State::kAtMatch);
  return fibers[current].answer;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline int atomicAdd(int* target, int value) {
  const int before = *target;
  *target += value;
  return before;
}
