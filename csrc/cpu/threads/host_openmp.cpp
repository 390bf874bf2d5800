#include "cpu/threads/host_openmp.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace saekernels {

#if defined(__linux__)
namespace {

template <class Function>
bool look_up(const char* name, Function* found) {
  *found = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  return *found != nullptr;
}

}  // namespace

HostOpenMp find_host_openmp() {
  const char* wanted = std::getenv("SAEKERNELS_THREADS");
  if (wanted != nullptr && std::strcmp(wanted, "own") == 0) return {};
  HostOpenMp host;
  // GOMP_parallel is what GCC's code calls; LLVM's and Intel's runtimes have it too.
  const bool found = look_up("GOMP_parallel", &host.parallel) && look_up("omp_get_thread_num", &host.thread_number) &&
                     look_up("omp_get_max_threads", &host.max_threads) && look_up("omp_in_parallel", &host.in_parallel);
  return found ? host : HostOpenMp{};
}
#else
HostOpenMp find_host_openmp() { return {}; }
#endif

}  // namespace saekernels
