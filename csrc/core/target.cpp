#include "core/target.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "isa/loops.hpp"

namespace minerua {
namespace {

/// Bytes from which on memory is filled past the caches: less than that, whoever reads it next finds it in them.
constexpr std::size_t streamed_bytes = std::size_t{4} << 20;

void write_all(int file, const char* bytes, std::size_t count, std::int64_t offset) {
  while (count > 0) {
    const ssize_t written = ::pwrite(file, bytes, count, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    // A write of nothing without an error would be tried for ever.
    if (written <= 0) throw std::system_error(written < 0 ? errno : EIO, std::generic_category(), "pwrite");
    bytes += written, offset += written, count -= static_cast<std::size_t>(written);
  }
}

}  // namespace

Writer::Writer(const Target& target)
    : target_(target),
      item_(size_of(target.dtype)),
      streams_(target.memory != nullptr && target.size * item_ >= streamed_bytes) {}

void* Writer::place(std::size_t count) {
  if (pending_.size() < used_ + count * item_) pending_.resize(used_ + count * item_);
  return pending_.data() + used_;
}

void Writer::take(std::size_t begin, std::size_t count, bool is_finite) {
  const std::size_t bytes = count * item_;
  const char* const computed = pending_.data() + used_;
  if (!is_finite)
    not_finite += static_cast<std::int64_t>(
        isa::loops().count_not_finite[static_cast<int>(target_.dtype)](computed, count));
  if (target_.memory == nullptr) {
    if (used_ == 0) first_ = begin;
    used_ += bytes;
    return;
  }
  char* const place = static_cast<char*>(target_.memory) + begin * item_;
  if (streams_)
    isa::loops().copy_past_caches(place, computed, bytes);
  else
    std::memcpy(place, computed, bytes);
}

void Writer::finish() {
  if (used_ > 0)
    write_all(target_.file, pending_.data(), used_, target_.offset + static_cast<std::int64_t>(first_ * item_));
  used_ = 0;
#if defined(__SSE2__)
  if (streams_) __builtin_ia32_sfence();  // the caller's threads see it all
#endif
}

}  // namespace minerua
