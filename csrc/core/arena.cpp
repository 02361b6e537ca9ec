#include "core/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "core/error.hpp"

namespace minerua {
namespace {

[[noreturn]] void out_of_memory(std::uint64_t bytes, const std::string& kind, const std::string& why) {
  throw OutOfMemory(std::to_string(bytes) + " bytes of " + kind + " memory cannot be had: " + why);
}

std::uint64_t rounded_up(std::uint64_t bytes, std::uint64_t step) { return (bytes + step - 1) / step * step; }

/// Largest block that is asked for: far beyond any machine, and far from the end of the numbers.
constexpr std::uint64_t most_bytes = std::uint64_t{1} << 56;

}  // namespace

// ── upstreams ────────────────────────────────────────────────────────────────────────────────────────────────────────

void* HostUpstream::allocate(std::uint64_t bytes) {
  void* const address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) out_of_memory(bytes, "host", std::strerror(errno));
  return address;
}

void HostUpstream::free(void* address, std::uint64_t bytes) noexcept { munmap(address, bytes); }

void HostUpstream::discard(void* address, std::uint64_t bytes) noexcept { madvise(address, bytes, MADV_DONTNEED); }

void* PinnedUpstream::allocate(std::uint64_t bytes) {
  void* address = nullptr;
  if (cuda_.pinned_allocate(static_cast<std::int64_t>(bytes), &address) != 0)
    out_of_memory(bytes, "pinned host", cuda_.last_error());
  return address;
}

void PinnedUpstream::free(void* address, std::uint64_t) noexcept { cuda_.pinned_free(address); }

// ── arena ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Arena::Arena(std::unique_ptr<Upstream> upstream, std::uint64_t region_bytes)
    : upstream_(std::move(upstream)), region_bytes_(rounded_up(std::max(region_bytes, Allocator::granule), Allocator::granule)) {}

Arena::~Arena() {
  for (const auto& region : regions_)
    if (region) upstream_->free(region->address, region->bytes);
}

std::uint32_t Arena::add_region(std::uint64_t bytes) {
  const std::uint64_t usable = std::max(region_bytes_, rounded_up(bytes, Allocator::granule));
  const std::uint64_t asked = usable + region_alignment;
  auto slot = std::find(regions_.begin(), regions_.end(), nullptr);
  if (slot == regions_.end()) {
    regions_.emplace_back();
    slot = regions_.end() - 1;
  }
  auto region = std::make_unique<Region>(Region{nullptr, asked, nullptr, Allocator(usable)});
  region->address = upstream_->allocate(asked);  // may throw: an empty slot is left, which is no region
  const auto start = reinterpret_cast<std::uintptr_t>(region->address);
  region->base = static_cast<char*>(region->address) + (rounded_up(start, region_alignment) - start);
  *slot = std::move(region);
  ++region_count_;
  return static_cast<std::uint32_t>(slot - regions_.begin());
}

void Arena::drop_region(std::uint32_t index) {
  upstream_->free(regions_[index]->address, regions_[index]->bytes);
  regions_[index].reset();
  --region_count_;
}

Span Arena::from_region(std::uint32_t index, std::uint64_t bytes, std::uint64_t alignment) {
  Region& region = *regions_[index];
  const auto extent = region.allocator.allocate(bytes, alignment);
  if (!extent) return {};
  return {region.base + extent->offset, bytes, nullptr, index, *extent};
}

Span Arena::allocate(std::uint64_t bytes, std::uint64_t alignment, void*) {
  MINERUA_EXPECTS(alignment > 0 && (alignment & (alignment - 1)) == 0 && alignment <= region_alignment,
                  "alignment " << alignment << " is no power of two up to " << region_alignment);
  if (bytes > most_bytes) out_of_memory(bytes, "host", "no machine has so much");
  const std::lock_guard<std::mutex> lock(mutex_);
  for (std::uint32_t index = 0; index < regions_.size(); ++index)
    if (regions_[index])
      if (const Span span = from_region(index, bytes, alignment); span.address != nullptr) return span;
  return from_region(add_region(bytes), bytes, alignment);  // its base has the largest alignment, so the block fits
}

void Arena::free(const Span& span) {
  const std::lock_guard<std::mutex> lock(mutex_);
  MINERUA_EXPECTS(span.region < regions_.size() && regions_[span.region], "a block of a region that is gone was freed");
  Region& region = *regions_[span.region];
  region.allocator.free(span.extent);
  if (region.allocator.live() > 0) return;
  if (region_count_ > 1) return drop_region(span.region);
  if (region.allocator.high_water() > kept_bytes) {
    upstream_->discard(region.base + kept_bytes, region.allocator.high_water() - kept_bytes);
    region.allocator.reset_high_water();
  }
}

MemoryStatistics Arena::statistics() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  MemoryStatistics sum;
  for (const auto& region : regions_)
    if (region) {
      sum.reserved += region->bytes;
      sum.used += region->allocator.used();
      sum.blocks += region->allocator.live();
    }
  return sum;
}

// ── device ───────────────────────────────────────────────────────────────────────────────────────────────────────────

DeviceMemory::DeviceMemory(const CudaMemory& cuda, int device, std::uint64_t keep_bytes)
    : cuda_(cuda), device_(device), keep_bytes_(keep_bytes) {}

DeviceMemory::~DeviceMemory() {
  if (pool_ != nullptr) cuda_.pool_destroy(pool_);
}

Span DeviceMemory::allocate(std::uint64_t bytes, std::uint64_t alignment, void* stream) {
  MINERUA_EXPECTS(alignment > 0 && (alignment & (alignment - 1)) == 0 && alignment <= max_alignment(),
                  "alignment " << alignment << " is no power of two up to " << max_alignment());
  const std::string kind = "device " + std::to_string(device_);
  if (bytes > most_bytes) out_of_memory(bytes, kind, "no device has so much");
  const std::lock_guard<std::mutex> lock(mutex_);
  if (pool_ == nullptr && cuda_.pool_create(device_, static_cast<std::int64_t>(keep_bytes_), &pool_) != 0)
    out_of_memory(bytes, kind, cuda_.last_error());
  Span span{nullptr, bytes, stream, 0, {}};
  const auto taken = static_cast<std::int64_t>(std::max<std::uint64_t>(bytes, 1));
  if (cuda_.allocate(pool_, taken, stream, &span.address) != 0) out_of_memory(bytes, kind, cuda_.last_error());
  counts_.reserved += bytes;
  counts_.used += bytes;
  ++counts_.blocks;
  return span;
}

void DeviceMemory::free(const Span& span) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (cuda_.free(pool_, span.address, span.stream) != 0) out_of_memory(span.bytes, "device", cuda_.last_error());
  counts_.reserved -= span.bytes;
  counts_.used -= span.bytes;
  --counts_.blocks;
}

MemoryStatistics DeviceMemory::statistics() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

// ── what ledgers use ─────────────────────────────────────────────────────────────────────────────────────────────────

std::unique_ptr<Memory> host_memory(std::uint64_t capacity) {
  return std::make_unique<Arena>(std::make_unique<HostUpstream>(), 2 * std::min(capacity, most_bytes) + (1 << 20));
}

std::unique_ptr<Memory> pinned_memory(const CudaMemory& cuda) {
  return std::make_unique<Arena>(std::make_unique<PinnedUpstream>(cuda), std::uint64_t{64} << 20);
}

}  // namespace minerua
