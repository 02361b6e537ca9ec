/// @file allocator.hpp
/// Offsets into a span that nobody here ever touches: memory of a host, of a device, or of anything else.
///
/// Two-level segregated fit: free blocks hang in lists by size class (32 per power of two), two levels of bitmaps say which
/// lists have any, so that finding, splitting and joining take the same few steps whatever the number of blocks. What is
/// known about blocks lies in a table beside the span, never inside it.
/// Source: Masmano, Ripoll, Crespo and Real 2004, "TLSF: a new dynamic memory allocator for real-time systems".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace minerua {

/// What an Allocator gave: bytes from `offset` on. `node` is its name; `size` is what was asked for, rounded up.
struct Extent {
  std::uint64_t offset;
  std::uint64_t size;
  std::uint32_t node;
};

/// Sub-allocates a span of bytes. Not thread-safe: who owns it guards it.
class Allocator {
 public:
  /// Offsets and sizes are multiples of it: a cache line, so that neighbours never share one.
  static constexpr std::uint64_t granule = 64;

  /// @throws InvalidArgument unless `size` is a positive multiple of the granule.
  explicit Allocator(std::uint64_t size);

  /// Takes bytes whose offset is a multiple of `alignment`; nothing where no free block is large enough.
  /// Zero bytes take one granule. What std::bad_alloc interrupts is as it was.
  /// @throws InvalidArgument unless `alignment` is a power of two.
  std::optional<Extent> allocate(std::uint64_t bytes, std::uint64_t alignment);

  /// Gives back, and joins with free neighbours at once: two free blocks never lie side by side.
  /// @throws InvalidArgument where this node is not in use: freed twice, or never given.
  void free(const Extent& extent);

  std::uint64_t size() const { return size_; }
  std::uint64_t used() const { return used_; }
  std::size_t live() const { return live_; }

  /// The end of the highest byte that was ever in use since the last reset_high_water.
  std::uint64_t high_water() const { return high_water_; }
  void reset_high_water() { high_water_ = 0; }

  /// The largest block that is free: what fragmentation leaves. Walks one list.
  std::uint64_t largest_free() const;

  /// Walks everything and checks it: neighbours, sizes, lists, bitmaps. For tests. @throws InvalidArgument with what is wrong.
  void verify() const;

 private:
  static constexpr unsigned second_bits = 5, second_count = 1u << second_bits, first_count = 64 - second_bits;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  struct Node {
    std::uint64_t offset, size;  // in granules
    std::uint32_t before, after;  // neighbours in the span
    std::uint32_t previous, next;  // in a list of free blocks, or of unused nodes
    bool used, exists;
  };
  struct Class {
    unsigned first, second;
  };

  static Class class_of(std::uint64_t granules);
  static std::uint64_t rounded_to_class(std::uint64_t granules);

  std::uint32_t find(std::uint64_t granules) const;
  std::uint32_t find_exactly(std::uint64_t granules, std::uint64_t step) const;
  void link(std::uint32_t node);
  void unlink(std::uint32_t node);
  std::uint32_t new_node();
  void drop_node(std::uint32_t node);
  std::uint32_t split(std::uint32_t node, std::uint64_t granules);
  void join_with_next(std::uint32_t node);

  std::uint64_t size_, used_ = 0, high_water_ = 0;
  std::size_t live_ = 0;
  std::vector<Node> nodes_{};
  std::uint32_t unused_ = none;
  std::uint64_t first_map_ = 0;
  std::array<std::uint32_t, first_count> second_maps_{};
  std::array<std::array<std::uint32_t, second_count>, first_count> heads_{};
};

}  // namespace minerua
