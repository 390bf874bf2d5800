// The OpenMP runtime that the host program (torch) already runs, found by name; nothing is linked.
//
// Its threads wait for the next parallel region by spinning for a while. A pool of our own would share the cores with
// them just then, right after a matrix product of torch's; their team, awake already, takes our tasks instead.
#pragma once

namespace saekernels {

struct HostOpenMp {
  using Region = void (*)(void* data);

  void (*parallel)(Region region, void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
  int (*max_threads)() = nullptr;
  int (*in_parallel)() = nullptr;

  bool usable() const { return parallel != nullptr; }
};

// Not usable where there is none, where SAEKERNELS_THREADS=own asks for our own pool, and in a forked child, where a
// team of the parent's is gone but not forgotten.
HostOpenMp find_host_openmp();

}  // namespace saekernels
