#include "core/allocator.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace minerua {
namespace {

unsigned log2_of(std::uint64_t value) { return 63u - static_cast<unsigned>(__builtin_clzll(value)); }

std::uint64_t aligned(std::uint64_t value, std::uint64_t step) { return (value + step - 1) & ~(step - 1); }

}  // namespace

Allocator::Allocator(std::uint64_t size) : size_(size) {
  MINERUA_EXPECTS(size > 0 && size % granule == 0, "an allocator's size is " << size << ", must be a multiple of " << granule);
  for (auto& heads : heads_) heads.fill(none);
  const std::uint32_t whole = new_node();
  nodes_[whole] = {0, size / granule, none, none, none, none, false, true};
  link(whole);
}

// ── size classes ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Classes below 2^5 granules hold one size each; above, 32 classes share every power of two.
Allocator::Class Allocator::class_of(std::uint64_t granules) {
  if (granules < second_count) return {0, static_cast<unsigned>(granules)};
  const unsigned power = log2_of(granules);
  return {power - second_bits + 1, static_cast<unsigned>(granules >> (power - second_bits)) & (second_count - 1)};
}

/// The smallest size all of whose class is large enough.
std::uint64_t Allocator::rounded_to_class(std::uint64_t granules) {
  if (granules < second_count) return granules;
  return granules + (std::uint64_t{1} << (log2_of(granules) - second_bits)) - 1;
}

std::uint32_t Allocator::find(std::uint64_t granules) const {
  const Class wanted = class_of(rounded_to_class(granules));
  if (wanted.first >= first_count) return none;
  if (const std::uint32_t seconds = second_maps_[wanted.first] & (~std::uint32_t{0} << wanted.second); seconds != 0)
    return heads_[wanted.first][static_cast<unsigned>(__builtin_ctz(seconds))];
  if (wanted.first + 1 >= first_count) return none;
  const std::uint64_t firsts = first_map_ & (~std::uint64_t{0} << (wanted.first + 1));
  if (firsts == 0) return none;
  const auto first = static_cast<unsigned>(__builtin_ctzll(firsts));
  return heads_[first][static_cast<unsigned>(__builtin_ctz(second_maps_[first]))];
}

/// Looks through the lists that `find` rounds past, before memory is said to be full: a block there may just do.
std::uint32_t Allocator::find_exactly(std::uint64_t granules, std::uint64_t step) const {
  const Class from = class_of(granules), to = class_of(rounded_to_class(granules + step));
  for (unsigned first = from.first; first <= std::min(to.first, first_count - 1); ++first)
    for (unsigned second = first == from.first ? from.second : 0; second < second_count; ++second) {
      if (first == to.first && second > to.second) return none;
      for (std::uint32_t node = heads_[first][second]; node != none; node = nodes_[node].next)
        if (const Node& block = nodes_[node]; aligned(block.offset, step) + granules <= block.offset + block.size) return node;
    }
  return none;
}

void Allocator::link(std::uint32_t node) {
  const Class its = class_of(nodes_[node].size);
  std::uint32_t& head = heads_[its.first][its.second];
  nodes_[node].previous = none;
  nodes_[node].next = head;
  if (head != none) nodes_[head].previous = node;
  head = node;
  first_map_ |= std::uint64_t{1} << its.first;
  second_maps_[its.first] |= std::uint32_t{1} << its.second;
}

void Allocator::unlink(std::uint32_t node) {
  const Class its = class_of(nodes_[node].size);
  const auto [previous, next] = std::pair(nodes_[node].previous, nodes_[node].next);
  if (next != none) nodes_[next].previous = previous;
  if (previous != none) {
    nodes_[previous].next = next;
    return;
  }
  heads_[its.first][its.second] = next;
  if (next != none) return;
  second_maps_[its.first] &= ~(std::uint32_t{1} << its.second);
  if (second_maps_[its.first] == 0) first_map_ &= ~(std::uint64_t{1} << its.first);
}

// ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

std::uint32_t Allocator::new_node() {
  if (unused_ == none) {
    nodes_.push_back({0, 0, none, none, none, none, false, false});
    return static_cast<std::uint32_t>(nodes_.size() - 1);
  }
  const std::uint32_t node = unused_;
  unused_ = nodes_[node].next;
  return node;
}

void Allocator::drop_node(std::uint32_t node) {
  nodes_[node] = {0, 0, none, none, none, unused_, false, false};
  unused_ = node;
}

/// Cuts a block that is in no list after so many granules; returns the rest, which is in no list either.
std::uint32_t Allocator::split(std::uint32_t node, std::uint64_t granules) {
  const std::uint32_t rest = new_node();
  Node& block = nodes_[node];
  nodes_[rest] = {block.offset + granules, block.size - granules, node, block.after, none, none, false, true};
  if (block.after != none) nodes_[block.after].before = rest;
  block.after = rest;
  block.size = granules;
  return rest;
}

void Allocator::join_with_next(std::uint32_t node) {
  const std::uint32_t gone = nodes_[node].after;
  nodes_[node].size += nodes_[gone].size;
  nodes_[node].after = nodes_[gone].after;
  if (nodes_[gone].after != none) nodes_[nodes_[gone].after].before = node;
  drop_node(gone);
}

// ── what callers see ─────────────────────────────────────────────────────────────────────────────────────────────────

std::optional<Extent> Allocator::allocate(std::uint64_t bytes, std::uint64_t alignment) {
  MINERUA_EXPECTS(alignment > 0 && (alignment & (alignment - 1)) == 0, "alignment " << alignment << " is no power of two");
  if (bytes > size_) return std::nullopt;
  const std::uint64_t granules = std::max<std::uint64_t>(1, (bytes + granule - 1) / granule);
  const std::uint64_t step = std::max<std::uint64_t>(1, alignment / granule);
  if (step > size_ / granule) return std::nullopt;
  // Two nodes at most are made below: room for them first, so that running out of memory changes nothing.
  if (nodes_.size() + 2 > nodes_.capacity()) nodes_.reserve(std::max<std::size_t>(64, 2 * nodes_.size()));
  std::uint32_t node = find(granules + step - 1);
  if (node == none) node = find_exactly(granules, step);
  if (node == none) return std::nullopt;
  unlink(node);
  if (const std::uint64_t skipped = aligned(nodes_[node].offset, step) - nodes_[node].offset; skipped > 0) {
    const std::uint32_t front = node;
    node = split(front, skipped);
    link(front);
  }
  if (nodes_[node].size > granules) link(split(node, granules));
  nodes_[node].used = true;
  used_ += granules * granule;
  ++live_;
  const Extent given{nodes_[node].offset * granule, granules * granule, node};
  high_water_ = std::max(high_water_, given.offset + given.size);
  return given;
}

void Allocator::free(const Extent& extent) {
  std::uint32_t node = extent.node;
  MINERUA_EXPECTS(node < nodes_.size() && nodes_[node].used && nodes_[node].offset * granule == extent.offset,
                  "the block at offset " << extent.offset << " is not in use: freed twice, or never given");
  used_ -= nodes_[node].size * granule;
  --live_;
  nodes_[node].used = false;
  if (const std::uint32_t after = nodes_[node].after; after != none && !nodes_[after].used) {
    unlink(after);
    join_with_next(node);
  }
  if (const std::uint32_t before = nodes_[node].before; before != none && !nodes_[before].used) {
    unlink(before);
    join_with_next(before);
    node = before;
  }
  link(node);
}

std::uint64_t Allocator::largest_free() const {
  if (first_map_ == 0) return 0;
  const unsigned first = log2_of(first_map_);
  const unsigned second = log2_of(second_maps_[first]);
  std::uint64_t largest = 0;
  for (std::uint32_t node = heads_[first][second]; node != none; node = nodes_[node].next)
    largest = std::max(largest, nodes_[node].size);
  return largest * granule;
}

void Allocator::verify() const {
  std::uint64_t end = 0, used = 0;
  std::size_t live = 0, free_blocks = 0, listed = 0;
  std::uint32_t before = none;
  for (std::uint32_t node = 0; node != none; before = node, node = nodes_[node].after) {
    const Node& block = nodes_[node];
    MINERUA_EXPECTS(block.exists && block.offset == end && block.size > 0 && block.before == before,
                    "verify: block " << node << " does not begin where the one before it ends");
    MINERUA_EXPECTS(block.used || before == none || nodes_[before].used, "verify: two free blocks lie side by side");
    end += block.size;
    (block.used ? live : free_blocks) += 1;
    used += block.used ? block.size * granule : 0;
  }
  MINERUA_EXPECTS(end * granule == size_ && used == used_ && live == live_, "verify: sizes do not add up");
  for (unsigned first = 0; first < first_count; ++first)
    for (unsigned second = 0; second < second_count; ++second) {
      const std::uint32_t head = heads_[first][second];
      MINERUA_EXPECTS((head != none) == ((second_maps_[first] >> second & 1) != 0), "verify: a bitmap is wrong");
      for (std::uint32_t node = head; node != none; node = nodes_[node].next, ++listed) {
        const Class its = class_of(nodes_[node].size);
        MINERUA_EXPECTS(!nodes_[node].used && its.first == first && its.second == second, "verify: a block is in the wrong list");
      }
      MINERUA_EXPECTS((second_maps_[first] != 0) == ((first_map_ >> first & 1) != 0), "verify: a bitmap is wrong");
    }
  MINERUA_EXPECTS(listed == free_blocks, "verify: " << listed << " blocks in lists, " << free_blocks << " are free");
}

}  // namespace minerua
