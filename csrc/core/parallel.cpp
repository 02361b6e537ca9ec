#include "core/parallel.hpp"

#include <pthread.h>
#include <signal.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "core/error.hpp"

namespace minerua {
namespace {

/// One parallel_for in progress. It lives on the caller's stack; `helpers`, `error` and `error_index` belong to the pool's
/// mutex.
struct Job {
  const std::function<void(std::size_t)>& body;
  const std::size_t count;
  std::atomic<std::size_t> next{0};
  std::size_t helpers = 0;
  std::condition_variable idle{};
  std::exception_ptr error{};
  std::size_t error_index = 0;

  Job(const std::function<void(std::size_t)>& body_, std::size_t count_) : body(body_), count(count_) {}
};

class Pool {
 public:
  explicit Pool(std::size_t threads) : threads_(threads) { start(); }
  ~Pool() { stop(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  std::size_t threads() const { return threads_; }
  void run(Job& job);

 private:
  void start();
  void stop();
  void serve();
  void work_on(Job& job);
  void forget(Job& job) { jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end()); }

  const std::size_t threads_;
  std::mutex mutex_{};
  std::condition_variable wake_{};
  std::deque<Job*> jobs_{};
  std::vector<std::thread> workers_{};
  bool stopping_ = false;
};

/// Blocks all signals while it lives: threads started meanwhile inherit that, and Python's handlers stay where they belong.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

void Pool::start() {
  const SignalsBlocked blocked;
  workers_.reserve(threads_ - 1);
  try {
    for (std::size_t i = 1; i < threads_; ++i) workers_.emplace_back([this] { serve(); });
  } catch (...) {  // the system refuses more threads: end the ones that started, then report
    stop();
    throw;
  }
}

void Pool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    Job& job = *jobs_.front();
    ++job.helpers;
    lock.unlock();
    work_on(job);
    lock.lock();
    forget(job);  // nothing is left to claim
    if (--job.helpers == 0) job.idle.notify_one();
  }
}

void Pool::work_on(Job& job) {
  for (std::size_t i = job.next.fetch_add(1); i < job.count; i = job.next.fetch_add(1)) {
    try {
      job.body(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!job.error || i < job.error_index) {
        job.error = std::current_exception();
        job.error_index = i;
      }
    }
  }
}

void Pool::run(Job& job) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(&job);
  }
  for (std::size_t i = 0; i < std::min(workers_.size(), job.count - 1); ++i) wake_.notify_one();
  work_on(job);
  std::unique_lock<std::mutex> lock(mutex_);
  forget(job);
  job.idle.wait(lock, [&job] { return job.helpers == 0; });
}

/// How many processors this process may use; all of the machine's where the system cannot tell.
std::size_t affinity_count() {
#ifdef __linux__
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return std::max<std::size_t>(1, CPU_COUNT(&mask));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

/// The process's pool. Never destroyed: joining threads during static destruction can deadlock an interpreter's exit.
struct Shared {
  std::mutex mutex{};
  std::size_t threads = affinity_count();
  std::shared_ptr<Pool> pool{};
};

Shared& shared() {
  static Shared* const instance = [] {
    auto* created = new Shared;
    // In the child only the forking thread exists. The old pool is abandoned as it is (its mutex may be held by a thread
    // that is gone) and a new one is made when it is needed.
    pthread_atfork([] { shared().mutex.lock(); }, [] { shared().mutex.unlock(); },
                   [] {
                     ::new (&shared().pool) std::shared_ptr<Pool>();
                     shared().mutex.unlock();
                   });
    return created;
  }();
  return *instance;
}

std::shared_ptr<Pool> current_pool() {
  Shared& state = shared();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.pool) state.pool = std::make_shared<Pool>(state.threads);
  return state.pool;
}

}  // namespace

void parallel_for(std::size_t count, const std::function<void(std::size_t)>& body) {
  if (count == 0) return;
  Job job(body, count);
  current_pool()->run(job);
  if (job.error) std::rethrow_exception(job.error);
}

void set_num_threads(std::size_t count) {
  MINERUA_EXPECTS(count >= 1 && count <= 1024, "set_num_threads takes 1 to 1024 threads, not " << count);
  std::shared_ptr<Pool> replaced;  // destroyed after the lock: ending threads takes time
  Shared& state = shared();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (state.threads == count) return;
  state.threads = count;
  replaced.swap(state.pool);
}

std::size_t num_threads() {
  Shared& state = shared();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.threads;
}

}  // namespace minerua
