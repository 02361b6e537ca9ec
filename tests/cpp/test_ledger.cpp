// The ledger under load: whole grants only, first come first served, no waiter forgotten, nothing lost. A watchdog ends a
// test that hangs.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/error.hpp"
#include "core/ledger.hpp"

using namespace minerua;
using namespace std::chrono_literals;

namespace {

constexpr unsigned watchdog_seconds = 240;

bool at_rest(const Ledger& ledger) {
  const LedgerStatistics found = ledger.statistics();
  for (const ResourceStatistics& one : found.resources)
    if (one.in_use != 0 || one.peak > one.capacity) return false;
  return found.waiting == 0 && found.live.empty();
}

/// Waits until so many requests wait.
void until_waiting(const Ledger& ledger, std::size_t count) {
  while (ledger.statistics().waiting < count) std::this_thread::sleep_for(100us);
}

Outcome outcome_of(Ledger& ledger, const Needs& needs, const AcquireOptions& options = {}) {
  try {
    acquire(ledger, needs, options);
    return Outcome::granted;
  } catch (const NotGranted& refused) {
    return refused.outcome;
  }
}

/// Notes in which order requests are granted, and keeps what they get.
struct Log {
  std::vector<int> order{};
  std::vector<Claim*> held{};
  std::vector<Outcome> refused{};
  Notice notice(int number) {
    return [this, number](Claim& claim, Outcome outcome) {
      if (outcome != Outcome::granted) return refused.push_back(outcome);
      order.push_back(number);
      held.push_back(&claim);
    };
  }
};

// ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────

void test_first_come_first_served_and_the_urgent_before_all() {
  Ledger ledger({2}, 0);
  Log log;
  Lease holder = acquire(ledger, {{0, 2}});
  for (int number = 0; number < 4; ++number) ledger.queue({{0, 1}}, number == 3 ? 5 : 0, "", nullptr, log.notice(number));
  check::that(log.order.empty(), "nobody is served while nothing is free");
  check::that(!ledger.take({{0, 1}}, "", nullptr).claim, "who only tries does not pass those who wait");
  holder.release();
  check::that(log.order == std::vector<int>({3, 0}), "the urgent one, then the first");
  ledger.release(*log.held[0]);
  ledger.release(*log.held[1]);
  check::that(log.order == std::vector<int>({3, 0, 1, 2}), "then the others in order");
  ledger.release(*log.held[2]);
  ledger.release(*log.held[3]);
  check::that(at_rest(ledger), "nothing is left");
}

void test_a_small_request_waits_behind_a_large_one_unless_it_cannot_delay_it() {
  for (const std::size_t backfill : {0u, 2u}) {
    Ledger ledger({4, 10}, backfill);
    Log log;
    Lease holder = acquire(ledger, {{0, 2}});
    ledger.queue({{0, 4}, {1, 5}}, 0, "large", nullptr, log.notice(0));
    ledger.queue({{0, 1}}, 0, "delays", nullptr, log.notice(1));
    for (int number = 2; number < 5; ++number) ledger.queue({{1, 1}}, 0, "harmless", nullptr, log.notice(number));
    const std::vector<int> passed = backfill == 0 ? std::vector<int>() : std::vector<int>({2, 3});
    check::that(log.order == passed, "as many pass as may, and none that delays");
    check::that(ledger.statistics().bypasses == passed.size(), "they are counted");
    holder.release();
    check::that(log.order.size() == passed.size() + 1 && log.order.back() == 0, "the large one is next");
    while (!log.held.empty()) {
      Claim* const claim = log.held.back();
      log.held.pop_back();
      ledger.release(*claim);
    }
    check::that(at_rest(ledger) && log.order.size() == 5, "all were served");
  }
}

void test_a_head_that_leaves_lets_those_behind_it_move_up() {
  Ledger ledger({4}, 0);
  Log log;
  Lease holder = acquire(ledger, {{0, 2}});
  const auto head = ledger.queue({{0, 4}}, 0, "", nullptr, log.notice(0));
  ledger.queue({{0, 1}}, 0, "", nullptr, log.notice(1));
  check::that(ledger.withdraw(*head.claim, head.serial, Outcome::cancelled) == Outcome::cancelled, "the head leaves");
  check::that(log.order == std::vector<int>({1}), "the next one is looked at");
  check::that(ledger.withdraw(*head.claim, head.serial, Outcome::cancelled) != Outcome::cancelled, "it leaves once");
  std::thread impatient([&] { check::that(outcome_of(ledger, {{0, 4}}, {20ms}) == Outcome::timed_out, "it times out"); });
  until_waiting(ledger, 1);
  ledger.queue({{0, 1}}, 0, "", nullptr, log.notice(2));
  impatient.join();
  check::that(log.order == std::vector<int>({1, 2}), "a head that times out does the same");
  ledger.release(*log.held[0]);
  ledger.release(*log.held[1]);
}

void test_what_is_impossible_nested_or_closed_is_refused_at_once() {
  Ledger ledger({4, 1}, 0);
  check::that(outcome_of(ledger, {{0, 5}}) == Outcome::too_large, "more than there is");
  Lease lease = acquire(ledger, {{0, 1}});
  check::that(outcome_of(ledger, {{1, 1}}) == Outcome::nested, "a second acquire of one thread");
  check::that(lease.extend({{0, 3}}) && !lease.extend({{0, 1}}), "but it may be extended while there is some");
  std::thread other([&] { check::that(outcome_of(ledger, {{1, 1}}) == Outcome::granted, "another thread may"); });
  other.join();
  AcquireOptions nested;
  nested.nested = true;
  check::that(outcome_of(ledger, {{1, 1}}, nested) == Outcome::granted, "who insists may");
  lease.release();
  check::that(outcome_of(ledger, {{1, 1}}) == Outcome::granted, "after the release it may");
  Log log;
  Lease all = acquire(ledger, {{0, 4}});
  ledger.queue({{0, 4}}, 0, "", nullptr, log.notice(0));
  ledger.queue({{0, 2}}, 0, "", nullptr, log.notice(1));
  ledger.resize({{0, 3}});
  check::that(log.refused == std::vector<Outcome>({Outcome::too_large}), "who became impossible is told");
  ledger.close();
  check::that(log.refused.size() == 2 && log.refused[1] == Outcome::closed, "who waits is told of the end");
  check::that(outcome_of(ledger, {{1, 1}}) == Outcome::closed, "nothing is granted any more");
  all.release();
  check::that(ledger.statistics().resources[0].in_use == 0, "leases can still be released");
}

void test_notices_that_release_and_request_in_turn_need_no_deep_stack() {
  Ledger ledger({1}, 0);
  int left = 200000;
  std::function<void(Claim&, Outcome)> again = [&](Claim& claim, Outcome) {
    if (--left > 0) ledger.queue({{0, 1}}, 0, "", nullptr, again);
    ledger.release(claim);
  };
  ledger.queue({{0, 1}}, 0, "", nullptr, again);
  check::that(left == 0 && at_rest(ledger), "each is called once");
}

// ── many threads ─────────────────────────────────────────────────────────────────────────────────────────────────────

void test_random_requests_timeouts_and_cancels_balance_to_zero() {
  constexpr unsigned threads = 16;
  constexpr int rounds = 3000;
  constexpr std::array<Amount, 3> limits = {8, 1000, 50};
  for (const std::size_t backfill : {0u, 8u}) {
    Ledger ledger({limits.begin(), limits.end()}, backfill);
    std::array<std::atomic<Amount>, 3> in_use{};
    std::vector<std::thread> all;
    for (unsigned seed = 0; seed < threads; ++seed)
      all.emplace_back([&, seed] {
        std::mt19937 random(seed);
        for (int round = 0; round < rounds; ++round) {
          const auto up_to = [&random](Amount most) { return 1 + static_cast<Amount>(random()) % most; };
          const Needs needs = {{0, up_to(limits[0])}, {1, up_to(limits[1])}, {2, up_to(limits[2])}};
          AcquireOptions options;
          CancelToken token;
          std::thread canceller;
          if (random() % 4 == 0) options.timeout = std::chrono::microseconds(random() % 300);
          if (random() % 64 == 0) {
            options.cancel = &token;
            canceller = std::thread([&token] { token.cancel(); });
          }
          options.priority = random() % 16 == 0;
          try {
            const Lease lease = acquire(ledger, needs, options);
            for (const Need& need : needs)
              check::that(in_use[need.resource].fetch_add(need.amount) + need.amount <= limits[need.resource],
                          "never more than there is");
            if (random() % 8 == 0) std::this_thread::yield();
            for (const Need& need : needs) in_use[need.resource] -= need.amount;
            if (random() % 32 == 0) throw std::runtime_error("a task fails");
          } catch (const NotGranted&) {
          } catch (const std::runtime_error&) {
          }
          if (canceller.joinable()) canceller.join();
        }
      });
    for (std::thread& thread : all) thread.join();
    const LedgerStatistics found = ledger.statistics();
    check::that(at_rest(ledger), "accounts balance to zero");
    check::that(found.granted + found.timeouts + found.cancellations <= threads * rounds &&
                    found.granted > 0 && found.timeouts > 0, "each request has one outcome");
    std::uint64_t classes = 0;
    for (const std::uint64_t count : found.wait_histogram) classes += count;
    check::that(classes == found.waits, "every wait is in one class");
  }
}

void test_philosophers_who_take_both_forks_at_once_all_eat() {
  constexpr unsigned count = 5;
  Ledger ledger(std::vector<Amount>(count, 1), 0);
  std::vector<std::thread> philosophers;
  std::atomic<int> meals{0};
  for (unsigned seat = 0; seat < count; ++seat)
    philosophers.emplace_back([&, seat] {
      const Needs forks = seat % 2 == 0 ? Needs{{seat, 1}, {(seat + 1) % count, 1}} : Needs{{(seat + 1) % count, 1}, {seat, 1}};
      for (int meal = 0; meal < 2000; ++meal) {
        const Lease lease = acquire(ledger, forks);
        ++meals;
      }
    });
  for (std::thread& philosopher : philosophers) philosopher.join();
  check::that(meals == 2000 * count && at_rest(ledger), "everybody ate");
}

void test_a_large_request_is_granted_once_the_holders_of_its_time_are_done() {
  Ledger ledger({8}, 4);
  std::atomic<bool> stop{false};
  std::vector<std::thread> small;
  for (int k = 0; k < 8; ++k)
    small.emplace_back([&] {
      while (!stop) const Lease lease = acquire(ledger, {{0, 1}});
    });
  for (int round = 0; round < 200; ++round) {
    // As all requests name the one resource, nobody may pass: whoever is served before it came before it.
    const Lease large = acquire(ledger, {{0, 8}});
    check::that(ledger.statistics().resources[0].in_use == 8, "it has everything");
  }
  stop = true;
  for (std::thread& thread : small) thread.join();
  check::that(ledger.statistics().bypasses == 0 && at_rest(ledger), "nobody passed it");
}

void test_a_release_that_races_with_a_timeout_loses_no_wake_up() {
  Ledger ledger({1}, 0);
  int granted = 0, timed_out = 0;
  for (int round = 0; round < 1500; ++round) {
    auto lease = std::make_unique<Lease>(acquire(ledger, {{0, 1}}));
    std::thread waiter([&] {
      (outcome_of(ledger, {{0, 1}}, {std::chrono::microseconds(50 + round % 50)}) == Outcome::granted ? granted : timed_out) += 1;
    });
    std::thread patient([&] { check::that(outcome_of(ledger, {{0, 1}}) == Outcome::granted, "who is behind is served"); });
    const auto until = Clock::now() + std::chrono::microseconds(round % 150);
    while (Clock::now() < until) std::this_thread::yield();
    lease.reset();
    waiter.join();
    patient.join();
  }
  check::that(granted + timed_out == 1500 && at_rest(ledger), "each ends as one or the other");
}

void test_a_token_wakes_whoever_waits_and_stays_set() {
  Ledger ledger({1}, 0);
  CancelToken token;
  Lease lease = acquire(ledger, {{0, 1}});
  AcquireOptions options;
  options.cancel = &token;
  std::vector<std::thread> waiting;
  for (int k = 0; k < 4; ++k)
    waiting.emplace_back([&] { check::that(outcome_of(ledger, {{0, 1}}, options) == Outcome::cancelled, "cancelled"); });
  until_waiting(ledger, 4);
  token.cancel();
  for (std::thread& thread : waiting) thread.join();
  lease.release();
  check::that(outcome_of(ledger, {{0, 1}}, options) == Outcome::cancelled, "a token that is set refuses");
  check::that(ledger.statistics().cancellations == 4 && at_rest(ledger), "four were withdrawn");
}

void test_a_forked_child_knows_that_the_ledger_is_not_its_own() {
  auto ledger = std::make_unique<Ledger>(std::vector<Amount>{1}, 0);
  const pid_t child = fork();
  if (child == 0) _exit(ledger->abandoned() && !Ledger({1}, 0).abandoned() ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  check::that(WIFEXITED(status) && WEXITSTATUS(status) == 0 && !ledger->abandoned(), "only the child's copy is abandoned");
}

void test_parts_of_a_claim_are_released_by_themselves() {
  Ledger ledger({10}, 0);
  Claim& claim = *ledger.take({{0, 10}}, "lease", nullptr).claim;
  Claim& part = ledger.split(claim, {{0, 4}});
  ledger.release(claim, true);
  check::that(ledger.statistics().resources[0].in_use == 4, "the part is still held");
  ledger.release(part);
  check::that(at_rest(ledger) && ledger.statistics().leaked.at("lease") == 1, "one leak, under its name");
  check::throws<InvalidArgument>([] { Ledger wrong({-1}, 0); }, "0 or more", "a negative capacity");
}

}  // namespace

int main() {
  alarm(watchdog_seconds);  // a hang ends as a failure
  test_first_come_first_served_and_the_urgent_before_all();
  test_a_small_request_waits_behind_a_large_one_unless_it_cannot_delay_it();
  test_a_head_that_leaves_lets_those_behind_it_move_up();
  test_what_is_impossible_nested_or_closed_is_refused_at_once();
  test_notices_that_release_and_request_in_turn_need_no_deep_stack();
  test_random_requests_timeouts_and_cancels_balance_to_zero();
  test_philosophers_who_take_both_forks_at_once_all_eat();
  test_a_large_request_is_granted_once_the_holders_of_its_time_are_done();
  test_a_release_that_races_with_a_timeout_loses_no_wake_up();
  test_a_token_wakes_whoever_waits_and_stays_set();
  test_a_forked_child_knows_that_the_ledger_is_not_its_own();
  test_parts_of_a_claim_are_released_by_themselves();
  return check::summary("ledger");
}
