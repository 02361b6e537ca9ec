#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"

using namespace minerua;

namespace {

bool each_index_once(std::size_t count) {
  std::vector<int> seen(count, 0);  // not atomic: a race would be a finding of the thread sanitizer
  parallel_for(count, [&seen](std::size_t i) { ++seen[i]; });
  for (int times : seen)
    if (times != 1) return false;
  return true;
}

void test_every_index_runs_once() {
  for (std::size_t threads : {1, 2, 3, 8})
    for (std::size_t count : {0, 1, 2, 7, 1000}) {
      set_num_threads(threads);
      check::that(each_index_once(count), std::to_string(count) + " indices on " + std::to_string(threads) + " threads");
    }
}

void test_the_error_of_the_smallest_index_reaches_the_caller() {
  set_num_threads(4);
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> ran{0};
    const auto body = [&ran](std::size_t i) {
      ++ran;
      if (i % 10 == 3) throw std::runtime_error("index " + std::to_string(i));
    };
    check::throws<std::runtime_error>([&body] { parallel_for(100, body); }, "index 3", "an error in a worker");
    check::that(ran == 100, "an error does not stop the others");
  }
  check::that(each_index_once(100), "the pool works after errors");
}

void test_several_callers_and_nesting() {
  set_num_threads(3);
  std::atomic<int> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&sum] {
      for (int round = 0; round < 50; ++round)
        parallel_for(5, [&sum](std::size_t) { parallel_for(3, [&sum](std::size_t) { ++sum; }); });
    });
  for (int round = 0; round < 50; ++round) set_num_threads(1 + static_cast<std::size_t>(round % 4));
  for (std::thread& caller : callers) caller.join();
  check::that(sum == 4 * 50 * 5 * 3, "nested calls from four threads while the pool is replaced");
}

void test_a_forked_child_gets_a_new_pool() {
  set_num_threads(3);
  check::that(each_index_once(100), "before the fork");
  const pid_t child = fork();
  if (child == 0) _exit(each_index_once(100) ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  check::that(WIFEXITED(status) && WEXITSTATUS(status) == 0, "in the child of a fork");
  check::that(each_index_once(100), "after the fork");
}

void test_a_wrong_number_of_threads_is_refused() {
  check::throws<InvalidArgument>([] { set_num_threads(0); }, "1 to 1024 threads, not 0", "0 threads");
  check::throws<InvalidArgument>([] { set_num_threads(1025); }, "not 1025", "1025 threads");
}

}  // namespace

int main() {
  check::that(num_threads() >= 1, "the default is at least one thread");
  test_every_index_runs_once();
  test_the_error_of_the_smallest_index_reaches_the_caller();
  test_several_callers_and_nesting();
  test_a_forked_child_gets_a_new_pool();
  test_a_wrong_number_of_threads_is_refused();
  set_num_threads(1);  // ends the workers, so that a leak checker finds nothing
  return check::summary("parallel");
}
