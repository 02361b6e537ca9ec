/// @file arena.hpp
/// Memory behind the ledger's byte counts: of the host, pinned, and of devices.
///
/// Host and pinned memory come in large regions that an Allocator cuts up; device memory comes block by block from CUDA's
/// stream-ordered allocator, which does the same on its side. Who may take how much is the ledger's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "core/allocator.hpp"

namespace minerua {

/// Memory that could not be had; the text says how much, of what, and why.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

/// A block of memory. Its owner gives it back to where it came from, once.
struct Span {
  void* address = nullptr;
  std::uint64_t bytes = 0;
  void* stream = nullptr;  // device memory only: the stream on which it is given back
  std::uint32_t region = 0;
  Extent extent{};
};

struct MemoryStatistics {
  std::uint64_t reserved = 0;  // of the system, address space included
  std::uint64_t used = 0;      // by blocks, rounded up
  std::size_t blocks = 0;
};

/// Where blocks come from. All functions may be called from several threads at once.
class Memory {
 public:
  virtual ~Memory() = default;

  /// @param alignment A power of two, at most `max_alignment`.
  /// @param stream For device memory: a cudaStream_t; the block may be used by work queued on it from now on.
  /// @throws OutOfMemory; then nothing has changed.
  virtual Span allocate(std::uint64_t bytes, std::uint64_t alignment, void* stream) = 0;
  virtual void free(const Span& span) = 0;
  virtual MemoryStatistics statistics() const = 0;
  virtual std::uint64_t max_alignment() const = 0;
  /// Whether the host can read and write it.
  virtual bool on_host() const = 0;
};

/// What an arena gets its regions from. Called with the arena's mutex held.
class Upstream {
 public:
  virtual ~Upstream() = default;
  /// @throws OutOfMemory.
  virtual void* allocate(std::uint64_t bytes) = 0;
  virtual void free(void* address, std::uint64_t bytes) noexcept = 0;
  /// The contents are not needed any more; the addresses are.
  virtual void discard(void* address, std::uint64_t bytes) noexcept = 0;
};

/// Address space of the host: pages come when they are first touched.
class HostUpstream final : public Upstream {
 public:
  void* allocate(std::uint64_t bytes) override;
  void free(void* address, std::uint64_t bytes) noexcept override;
  void discard(void* address, std::uint64_t bytes) noexcept override;
};

/// Functions of libminerua_cuda.so, handed in by whoever opened it; see cuda/capi.h.
struct CudaMemory {
  int (*pinned_allocate)(std::int64_t bytes, void** address);
  int (*pinned_free)(void* address);
  int (*pool_create)(int device, std::int64_t keep_bytes, void** pool);
  int (*pool_destroy)(void* pool);
  int (*allocate)(void* pool, std::int64_t bytes, void* stream, void** address);
  int (*free)(void* pool, void* address, void* stream);
  const char* (*last_error)();
};

/// Page-locked host memory, which devices copy from and to without a stop.
class PinnedUpstream final : public Upstream {
 public:
  explicit PinnedUpstream(const CudaMemory& cuda) : cuda_(cuda) {}
  void* allocate(std::uint64_t bytes) override;
  void free(void* address, std::uint64_t bytes) noexcept override;
  void discard(void*, std::uint64_t) noexcept override {}

 private:
  const CudaMemory cuda_;
};

/// Regions cut up by allocators. The first region is made when the first block is asked for; a further one where a block
/// fits into none of those there are. A region that is empty goes back if there is another; the last one stays, but its
/// contents beyond `kept_bytes` go.
class Arena final : public Memory {
 public:
  /// How much of an empty arena stays in memory: giving back pages and faulting them in again costs more than they are
  /// worth where one task follows another.
  static constexpr std::uint64_t kept_bytes = std::uint64_t{64} << 20;

  /// @param region_bytes The least size of a region.
  Arena(std::unique_ptr<Upstream> upstream, std::uint64_t region_bytes);
  ~Arena() override;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Span allocate(std::uint64_t bytes, std::uint64_t alignment, void* stream) override;
  void free(const Span& span) override;
  MemoryStatistics statistics() const override;
  std::uint64_t max_alignment() const override { return region_alignment; }
  bool on_host() const override { return true; }

 private:
  static constexpr std::uint64_t region_alignment = std::uint64_t{2} << 20;  // a huge page

  struct Region {
    void* address;        // as the upstream gave it
    std::uint64_t bytes;  // likewise
    char* base;           // aligned
    Allocator allocator;
  };

  std::uint32_t add_region(std::uint64_t bytes);
  void drop_region(std::uint32_t index);
  Span from_region(std::uint32_t index, std::uint64_t bytes, std::uint64_t alignment);

  const std::unique_ptr<Upstream> upstream_;
  const std::uint64_t region_bytes_;
  mutable std::mutex mutex_{};
  std::vector<std::unique_ptr<Region>> regions_{};  // null where one was dropped
  std::size_t region_count_ = 0;
};

/// Device memory: every block from CUDA's own pool, in the order of streams.
class DeviceMemory final : public Memory {
 public:
  /// @param keep_bytes How much the driver may keep for later instead of giving it back when the device is synchronised.
  DeviceMemory(const CudaMemory& cuda, int device, std::uint64_t keep_bytes);
  ~DeviceMemory() override;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  Span allocate(std::uint64_t bytes, std::uint64_t alignment, void* stream) override;
  void free(const Span& span) override;
  MemoryStatistics statistics() const override;
  std::uint64_t max_alignment() const override { return 256; }
  bool on_host() const override { return false; }

 private:
  const CudaMemory cuda_;
  const int device_;
  const std::uint64_t keep_bytes_;
  mutable std::mutex mutex_{};
  void* pool_ = nullptr;
  MemoryStatistics counts_{};
};

/// Host memory for a ledger's capacity: twice the address space, so that what is reserved also fits where it is cut up.
std::unique_ptr<Memory> host_memory(std::uint64_t capacity);

/// Pinned memory in regions of 64 MiB or more.
std::unique_ptr<Memory> pinned_memory(const CudaMemory& cuda);

}  // namespace minerua
