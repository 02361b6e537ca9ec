// Blocks never overlap, are aligned, and join again into one; arenas give back, and survive an upstream that fails.
#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/allocator.hpp"
#include "core/arena.hpp"
#include "core/error.hpp"

using namespace minerua;

namespace {

constexpr std::uint64_t mebi = std::uint64_t{1} << 20;

/// Blocks by offset: a plain model that knows where each begins and ends.
class Model {
 public:
  void add(const Extent& extent, std::uint64_t bytes, std::uint64_t alignment) {
    check::that(extent.offset % alignment == 0, "an offset is a multiple of its alignment");
    check::that(extent.size >= bytes, "a block is as large as was asked for");
    const auto next = blocks_.lower_bound(extent.offset);
    check::that(next == blocks_.end() || next->first >= extent.offset + extent.size, "a block ends before the next");
    check::that(next == blocks_.begin() || std::prev(next)->first + std::prev(next)->second.size <= extent.offset,
                "a block begins after the one before it");
    blocks_[extent.offset] = extent;
  }
  Extent take(std::size_t index) {
    const auto chosen = std::next(blocks_.begin(), static_cast<std::ptrdiff_t>(index));
    const Extent extent = chosen->second;
    blocks_.erase(chosen);
    return extent;
  }
  std::size_t size() const { return blocks_.size(); }

 private:
  std::map<std::uint64_t, Extent> blocks_{};
};

void test_random_blocks_never_overlap_and_join_into_one_again() {
  for (unsigned seed = 0; seed < 4; ++seed) {
    std::mt19937 random(seed);
    Allocator allocator(64 * mebi);
    Model model;
    std::size_t refused = 0;
    for (int step = 0; step < 6000; ++step) {
      if (model.size() == 0 || random() % 100 < 60) {
        const std::uint64_t bytes = random() % (std::uint64_t{1} << (6 + random() % 15)), alignment = 1u << random() % 14;
        const auto extent = allocator.allocate(bytes, alignment);
        if (extent)
          model.add(*extent, bytes, alignment);
        else
          ++refused;
      } else {
        allocator.free(model.take(random() % model.size()));
      }
      if (step % 500 == 0) allocator.verify();
    }
    check::that(allocator.live() == model.size(), "as many blocks live as the model has");
    while (model.size() > 0) allocator.free(model.take(random() % model.size()));
    allocator.verify();
    check::that(allocator.largest_free() == allocator.size() && allocator.used() == 0, "everything has joined into one block");
    check::that(seed > 0 || refused > 0, "some of these allocations find it full");
  }
}

void test_everything_can_be_one_block_and_every_size_fits_exactly() {
  for (const std::uint64_t size : {std::uint64_t{64}, 64 * std::uint64_t{1021}, 3 * mebi + 64}) {
    Allocator allocator(size);
    const auto whole = allocator.allocate(size, 1);
    check::that(whole && whole->size == size && !allocator.allocate(1, 1), "a block of everything, and nothing beside it");
    allocator.free(*whole);
    check::that(!allocator.allocate(size + 1, 1) && allocator.allocate(size, 64), "one byte more does not fit");
  }
}

void test_wrong_arguments_are_refused() {
  check::throws<InvalidArgument>([] { Allocator allocator(100); }, "multiple of 64", "a size between granules");
  Allocator allocator(mebi);
  check::throws<InvalidArgument>([&] { allocator.allocate(1, 3); }, "no power of two", "an alignment of 3");
  const Extent block = *allocator.allocate(100, 64);
  allocator.free(block);
  check::throws<InvalidArgument>([&] { allocator.free(block); }, "freed twice", "freeing twice");
  check::throws<InvalidArgument>([&] { allocator.free({0, 64, 12345}); }, "never given", "freeing what was never given");
}

/// An upstream that says no as often as it is told to, and counts.
class Moody final : public Upstream {
 public:
  struct Mood {
    int refusals = 0, regions = 0, discards = 0;
  };
  explicit Moody(Mood& mood) : mood_(mood) {}
  void* allocate(std::uint64_t bytes) override {
    if (mood_.refusals > 0 && mood_.refusals-- > 0) throw OutOfMemory("no memory today");
    ++mood_.regions;
    return host_.allocate(bytes);
  }
  void free(void* address, std::uint64_t bytes) noexcept override {
    --mood_.regions;
    host_.free(address, bytes);
  }
  void discard(void* address, std::uint64_t bytes) noexcept override {
    ++mood_.discards;
    host_.discard(address, bytes);
  }

 private:
  Mood& mood_;
  HostUpstream host_{};
};

void test_an_upstream_that_fails_changes_nothing() {
  Moody::Mood mood;
  {
    Arena arena(std::make_unique<Moody>(mood), mebi);
    mood.refusals = 2;
    for (int attempt = 0; attempt < 2; ++attempt)
      check::throws<OutOfMemory>([&] { arena.allocate(100, 64, nullptr); }, "no memory today", "an upstream that fails");
    check::that(arena.statistics().blocks == 0 && arena.statistics().reserved == 0, "nothing is counted");
    const Span small = arena.allocate(100, 64, nullptr);
    mood.refusals = 1;
    check::throws<OutOfMemory>([&] { arena.allocate(4 * mebi, 64, nullptr); }, "no memory", "a second region fails");
    check::that(arena.statistics().blocks == 1, "the first block is as it was");
    const Span large = arena.allocate(4 * mebi, 2 * mebi, nullptr);
    check::that(reinterpret_cast<std::uintptr_t>(large.address) % (2 * mebi) == 0, "aligned to two mebibytes");
    check::that(mood.regions == 2, "a large block gets a region");
    arena.free(large);
    check::that(mood.regions == 1, "which goes back when it is empty");
    arena.free(small);
  }
  check::that(mood.regions == 0, "all regions go back in the end");
}

void test_an_empty_arena_gives_its_pages_back() {
  Moody::Mood mood;
  Arena arena(std::make_unique<Moody>(mood), 256 * mebi);
  const Span block = arena.allocate(128 * mebi, 64, nullptr);
  static_cast<char*>(block.address)[100 * mebi] = 7;
  arena.free(block);
  check::that(mood.discards == 1, "pages beyond what is kept were given back");
  const Span again = arena.allocate(128 * mebi, 64, nullptr);
  check::that(static_cast<char*>(again.address)[100 * mebi] == 0, "and are fresh");
  arena.free(again);
  arena.free(arena.allocate(mebi, 64, nullptr));
  check::that(mood.discards == 2, "small use costs no system call");
}

void test_threads_allocate_in_one_and_free_in_another() {
  const std::unique_ptr<Memory> memory = host_memory(64 * mebi);
  std::mutex mutex;
  std::vector<Span> shared;
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed)
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (int step = 0; step < 2000; ++step) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (random() % 100 < 73 || shared.empty()) {
          const Span span = memory->allocate(random() % 10000, 64, nullptr);
          std::memset(span.address, static_cast<int>(seed), span.bytes);
          shared.push_back(span);
        } else {
          std::swap(shared[random() % shared.size()], shared.back());
          memory->free(shared.back());
          shared.pop_back();
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const Span& span : shared) memory->free(span);
  check::that(memory->statistics().used == 0, "everything was given back");
}

// ── the CUDA side, with functions that stand for the library's ───────────────────────────────────────────────────────

int live_blocks = 0, live_pools = 0;
bool cuda_refuses = false;

CudaMemory pretended() {
  CudaMemory cuda{};
  cuda.pinned_allocate = [](std::int64_t bytes, void** address) {
    return cuda_refuses ? -2 : (++live_blocks, *address = std::malloc(static_cast<std::size_t>(bytes)), 0);
  };
  cuda.pinned_free = [](void* address) { return --live_blocks, std::free(address), 0; };
  cuda.pool_create = [](int, std::int64_t, void** pool) { return cuda_refuses ? -2 : (++live_pools, *pool = &live_pools, 0); };
  cuda.pool_destroy = [](void*) { return --live_pools, 0; };
  cuda.allocate = [](void*, std::int64_t bytes, void*, void** address) {
    return cuda_refuses ? -2 : (++live_blocks, *address = std::malloc(static_cast<std::size_t>(bytes)), 0);
  };
  cuda.free = [](void*, void* address, void*) { return --live_blocks, std::free(address), 0; };
  cuda.last_error = [] { return "the device is busy"; };
  return cuda;
}

void test_pinned_and_device_memory_come_from_the_library_and_go_back() {
  for (const bool pinned : {true, false}) {
    std::unique_ptr<Memory> memory =
        pinned ? pinned_memory(pretended()) : std::make_unique<DeviceMemory>(pretended(), 0, mebi);
    check::that(memory->on_host() == pinned, "only pinned memory is the host's");
    cuda_refuses = true;
    check::throws<OutOfMemory>([&] { memory->allocate(100, 64, nullptr); }, "the device is busy", "the library's own words");
    cuda_refuses = false;
    const Span block = memory->allocate(100, 256, nullptr);
    check::that(memory->statistics().blocks == 1 && live_blocks == 1, "a block lives");
    memory->free(block);
    check::that(memory->statistics().blocks == 0, "and is gone");
    memory.reset();
    check::that(live_blocks == 0 && live_pools == 0, "nothing is left");
  }
}

}  // namespace

int main() {
  test_random_blocks_never_overlap_and_join_into_one_again();
  test_everything_can_be_one_block_and_every_size_fits_exactly();
  test_wrong_arguments_are_refused();
  test_an_upstream_that_fails_changes_nothing();
  test_an_empty_arena_gives_its_pages_back();
  test_threads_allocate_in_one_and_free_in_another();
  test_pinned_and_device_memory_come_from_the_library_and_go_back();
  return check::summary("allocator");
}
