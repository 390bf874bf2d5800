#include "cpu/threads/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "cpu/threads/host_openmp.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace saekernels {
namespace {

thread_local bool inside_task = false;

// Flush-to-zero and rounding of the calling thread: a row must not depend on who computed it.
struct FloatMode {
#if defined(__SSE__)
  unsigned csr = _mm_getcsr();
  void apply() const { _mm_setcsr(csr); }
#elif defined(__aarch64__)
  uint64_t control = get();
  static uint64_t get() {
    uint64_t bits;
    __asm__ volatile("mrs %0, fpcr" : "=r"(bits));
    return bits;
  }
  // Writing waits for all that is under way.
  void apply() const {
    if (control != get()) __asm__ volatile("msr fpcr, %0" : : "r"(control));
  }
#else
  void apply() const {}
#endif
};

struct Job {
  int64_t tasks;
  TaskCall call;
  void* context;
  int workers;
  FloatMode mode;
  // Relaxed: it hands out numbers and nothing else. What a task reads was written before the job was published under
  // the pool's mutex, and what it writes is read once `active_` is 0 under that mutex; on a host's team, its fork and
  // its barrier do the same. An error stored here may be met late, by a task that then runs for nothing.
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work(int worker) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      try {
        call(context, task, worker);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(tasks, std::memory_order_relaxed);
      }
    }
  }
};

class Pool {
 public:
  // False if another thread is using the pool.
  bool try_run(Job& job, int helpers) {
    const std::unique_lock<std::mutex> owner(owner_mutex_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    start_threads(helpers);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      joined_ = 0;
      wanted_ = helpers;
    }
    wake_.notify_all();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a thread that wakes only now finds nothing to join, so nobody waits for it
    done_.wait(lock, [&] { return active_ == 0; });
    return true;
  }

 private:
  // Threads are never joined: the pool lives until the process ends, when they are asleep. If the system gives no
  // more threads, those that exist do the work.
  void start_threads(int helpers) {
    try {
      for (; threads_ < helpers; ++threads_) std::thread([this] { loop(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void loop() {
    inside_task = true;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && joined_ < wanted_; });
      Job* job = job_;
      const int worker = ++joined_;
      ++active_;
      lock.unlock();
      job->mode.apply();
      job->work(worker);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex owner_mutex_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  int wanted_ = 0;
  int joined_ = 0;
  int active_ = 0;
  int threads_ = 0;
};

std::mutex creation_mutex;
Pool* pool = nullptr;
std::atomic<bool> forked{false};  // written in a child that has one thread

// A forked child has none of the threads, and maybe locked mutexes: it forgets the pool and builds its own.
void forget_pool() {
  new (&creation_mutex) std::mutex;
  pool = nullptr;
  inside_task = false;
  forked = true;
}

Pool& shared_pool() {
  const std::lock_guard<std::mutex> lock(creation_mutex);
  if (pool == nullptr) pool = new Pool;
  return *pool;
}

const HostOpenMp& host_openmp() {
  static const HostOpenMp found = find_host_openmp();
  return found;
}

// False if there is no host team to run on.
bool run_on_host(Job& job) {
  const HostOpenMp& host = host_openmp();
  if (!uses_host_threads() || host.in_parallel() != 0) return false;
  // The whole team, though fewer have work: a smaller region would make the runtime end threads and start them anew.
  const int team = std::max(host.max_threads(), job.workers);
  struct Region {
    Job* job;
    int (*thread_number)();
  } region{&job, host.thread_number};
  const auto body = [](void* data) {
    const Region& mine = *static_cast<Region*>(data);
    const int worker = mine.thread_number();
    if (worker >= mine.job->workers) return;
    const FloatMode before;
    const bool nested = inside_task;
    inside_task = true;
    mine.job->mode.apply();
    mine.job->work(worker);
    before.apply();
    inside_task = nested;
  };
  host.parallel(body, &region, static_cast<unsigned>(team), 0);
  return true;
}

}  // namespace

void watch_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  static_cast<void>(registered);
}

bool uses_host_threads() { return host_openmp().usable() && !forked; }

void run_tasks(int64_t tasks, int workers, TaskCall call, void* context) {
  if (tasks <= 0) return;
  const int helpers = static_cast<int>(std::min<int64_t>(workers, tasks)) - 1;
  Job job{tasks, call, context, helpers + 1, {}, {}, {}, {}};
  const bool nested = inside_task;
  if (helpers < 1 || nested) {
    job.work(0);
  } else if (watch_forks(); !run_on_host(job)) {
    inside_task = true;
    if (!shared_pool().try_run(job, helpers)) job.work(0);
    inside_task = false;
  }
  if (job.error) std::rethrow_exception(job.error);
}

int workers_for(double work, double grain, int limit) {
  return static_cast<int>(std::clamp(work / grain, 1.0, static_cast<double>(std::max(limit, 1))));
}

}  // namespace saekernels
