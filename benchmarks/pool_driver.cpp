// The resource pool without Python, for bench_pool.py, which compiles and runs it: answers checked, then figures, as JSON.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/allocator.hpp"
#include "core/ledger.hpp"

using namespace minerua;

namespace {

void expect(bool holds, const char* sentence) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", sentence);
  std::exit(1);
}

double nanoseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

/// The least time of one of `count` calls, over several rounds.
template <class Body>
double best_of(int rounds, int count, const Body& body) {
  double best = 1e300;
  for (int round = 0; round < rounds; ++round) {
    const auto start = Clock::now();
    for (int i = 0; i < count; ++i) body();
    best = std::min(best, nanoseconds_since(start) / count);
  }
  return best;
}

// ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────

double lease_nanoseconds(int count) {
  Ledger ledger({8, 1 << 30, 2}, 0);
  const Needs needs = {{0, 1}, {1, 4096}, {2, 1}};
  const double best = best_of(7, count, [&] { const Lease lease = acquire(ledger, needs); });
  expect(ledger.statistics().granted == 7u * static_cast<unsigned>(count), "every lease was granted");
  expect(ledger.statistics().resources[1].in_use == 0, "and given back");
  return best;
}

struct Stress {
  double seconds;
  std::uint64_t granted, waits;
  double longest_wait_seconds;
  int large;
  std::uint64_t most_before_large;
};

/// `threads` threads make `requests` random requests in all. Meanwhile one asks for everything, again and again;
/// `most_before_large` counts who was granted since it last looked, just before it asked.
Stress stress(unsigned threads, int requests) {
  const std::vector<Amount> capacity = {16, 1 << 20, 8};
  Ledger ledger(capacity, 0);
  std::atomic<int> working{static_cast<int>(threads)};
  std::vector<std::thread> all;
  const auto start = Clock::now();
  for (unsigned seed = 0; seed < threads; ++seed)
    all.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (int i = 0; i < requests / static_cast<int>(threads); ++i) {
        const auto up_to = [&random](Amount most) { return 1 + static_cast<Amount>(random()) % most; };
        const Needs needs = {{0, up_to(4)}, {1, up_to(1 << 18)}, {2, up_to(2)}};
        const Lease lease = acquire(ledger, needs);
      }
      --working;
    });
  Stress result{0, 0, 0, 0, 0, 0};
  const Needs everything = {{0, capacity[0]}, {1, capacity[1]}, {2, capacity[2]}};
  while (working > 0) {
    const std::uint64_t before = ledger.statistics().granted;
    const Lease lease = acquire(ledger, everything);
    result.most_before_large = std::max(result.most_before_large, ledger.statistics().granted - before - 1);
    ++result.large;
  }
  for (std::thread& thread : all) thread.join();
  result.seconds = nanoseconds_since(start) * 1e-9;
  const LedgerStatistics found = ledger.statistics();
  for (const ResourceStatistics& one : found.resources) expect(one.in_use == 0, "accounts balance to zero");
  expect(found.granted == static_cast<std::uint64_t>(requests / static_cast<int>(threads) * static_cast<int>(threads) + result.large),
         "every request was granted");
  result.granted = found.granted;
  result.waits = found.waits;
  result.longest_wait_seconds = found.longest_wait_seconds;
  return result;
}

// ── allocators ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// What RMM's pool does: free blocks in a list in the order of addresses, the best fit by looking at all of them.
class SortedList {
 public:
  struct Piece {
    std::uint64_t offset, size;
  };
  explicit SortedList(std::uint64_t size) : free_{{0, size}} {}

  std::optional<Piece> allocate(std::uint64_t bytes, std::uint64_t) {
    const std::uint64_t size = (bytes + 63) / 64 * 64;
    auto best = free_.end();
    for (auto one = free_.begin(); one != free_.end(); ++one)
      if (one->size >= size && (best == free_.end() || one->size < best->size)) best = one;
    if (best == free_.end()) return std::nullopt;
    const Piece given{best->offset, size};
    best->offset += size;
    best->size -= size;
    if (best->size == 0) free_.erase(best);
    return given;
  }

  void free(const Piece& piece) {
    auto next = std::find_if(free_.begin(), free_.end(), [&piece](const Piece& one) { return one.offset > piece.offset; });
    auto here = free_.insert(next, piece);
    if (next != free_.end() && here->offset + here->size == next->offset) {
      here->size += next->size;
      free_.erase(next);
    }
    if (here == free_.begin()) return;
    const auto before = std::prev(here);
    if (before->offset + before->size != here->offset) return;
    before->size += here->size;
    free_.erase(here);
  }

 private:
  std::list<Piece> free_;
};

/// Nanoseconds for an allocation or a free, with so many live blocks of 256 bytes to 1 MiB: one goes, one comes.
template <class Any>
double operation_nanoseconds(std::size_t live, int steps) {
  Any allocator(std::uint64_t{live} * (3 << 18) + (64 << 20));
  std::mt19937 random(1);
  const auto size = [&random] { return std::uint64_t{256} << (random() % 12) | random() % 256; };
  std::vector<std::decay_t<decltype(*allocator.allocate(1, 1))>> blocks;
  for (std::size_t i = 0; i < live; ++i) blocks.push_back(*allocator.allocate(size(), 64));
  for (std::size_t i = 0; i < live; ++i) {  // holes everywhere, as after long use
    auto& block = blocks[random() % live];
    allocator.free(block);
    block = *allocator.allocate(size(), 64);
  }
  double best = 1e300;
  for (int round = 0; round < 3; ++round) {
    const auto start = Clock::now();
    for (int i = 0; i < steps; ++i) {
      auto& block = blocks[random() % live];
      allocator.free(block);
      const auto fresh = allocator.allocate(size(), 64);
      expect(fresh.has_value(), "there is room");
      block = *fresh;
    }
    best = std::min(best, nanoseconds_since(start) / (2.0 * steps));
  }
  return best;
}

}  // namespace

int main(int count, char** arguments) {
  const bool smoke = count > 1 && std::string(arguments[1]) == "--smoke";
  std::printf("{\"lease_ns\": %.1f, ", lease_nanoseconds(smoke ? 10000 : 1000000));
  const Stress found = smoke ? stress(8, 4000) : stress(64, 1000000);
  std::printf("\"stress\": {\"seconds\": %.3f, \"granted\": %llu, \"waits\": %llu, \"longest_wait_seconds\": %.4f, "
              "\"large\": %d, \"most_before_large\": %llu}, ",
              found.seconds, static_cast<unsigned long long>(found.granted), static_cast<unsigned long long>(found.waits),
              found.longest_wait_seconds, found.large, static_cast<unsigned long long>(found.most_before_large));
  std::printf("\"allocator_ns\": {");
  for (const std::size_t live : {100, 1000, 10000, 100000})
    std::printf("%s\"%zu\": %.1f", live == 100 ? "" : ", ", live, operation_nanoseconds<Allocator>(live, smoke ? 1000 : 200000));
  std::printf("}, \"sorted_list_ns\": {");
  for (const std::size_t live : {100, 1000, 10000})
    std::printf("%s\"%zu\": %.1f", live == 100 ? "" : ", ", live, operation_nanoseconds<SortedList>(live, smoke ? 100 : 2000));
  std::printf("}}\n");
}
