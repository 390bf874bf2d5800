// Tasks on the host's OpenMP team where there is one (host_openmp.h), else on the library's own thread pool.
#pragma once

#include <cstdint>
#include <type_traits>

namespace saekernels {

using TaskCall = void (*)(void* context, int64_t task, int worker);

// Calls call(context, task, worker) once for every task in [0, tasks), in ascending order for each worker, with
// worker in [0, workers). Which worker takes a task is not fixed, so a result must not depend on it. Runs in the
// calling thread alone if workers <= 1, inside a task, or while another thread uses the pool. The first exception
// stops the rest and is rethrown. Safe after fork.
void run_tasks(int64_t tasks, int workers, TaskCall call, void* context);

// Threads of this process do not exist in a child; called before the first fork, children then start their own. The
// first run_tasks calls it too.
void watch_forks();

// Whether tasks go to the host's OpenMP team.
bool uses_host_threads();

template <class Fn>
void parallel_for(int64_t tasks, int workers, Fn&& fn) {
  using Plain = std::remove_reference_t<Fn>;
  run_tasks(
      tasks, workers, [](void* context, int64_t task, int worker) { (*static_cast<Plain*>(context))(task, worker); },
      &fn);
}

// As many workers as there are whole shares of `grain` in `work` (any unit), at least 1 and at most `limit`: waking a
// thread costs microseconds, which small calls should not pay.
int workers_for(double work, double grain, int limit);

}  // namespace saekernels
