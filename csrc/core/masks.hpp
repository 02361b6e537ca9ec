/// @file masks.hpp
/// Which elements of a task vector are kept, and how a strand finds that out tile by tile.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/chunks.hpp"
#include "core/select.hpp"
#include "isa/loops.hpp"

namespace minerua {

/// An element must be among `top`, must not be among `but`, and must be drawn.
struct Mask {
  Threshold top{0, std::uint64_t{1} << 62};
  Threshold but{key_limit + 1, 0};
  /// Keep with probability `keep`, or, with a spread, from keep - spread for the smallest of a row of `columns` elements to
  /// keep + spread for the largest, linearly in its rank.
  bool draws = false;
  float keep = 1.0f, spread = 0.0f;
  std::size_t columns = 1;
  /// Divide what is kept by its own probability.
  bool inverse = false;
  isa::RandomStream stream{};
  /// What `draw` found for this very mask, to spare drawing again; or null.
  const std::uint64_t* drawn = nullptr;

  bool is_ranked() const { return draws && spread != 0.0f && columns > 1; }
};

/// Fills `bits`, of size / 64 + 2 numbers, with what a mask without a spread draws: bit i % 64 of number i / 64 is that of
/// element i.
void draw(const Mask& mask, std::size_t size, std::uint64_t* bits);

/// Fills `numbers` with the upper 24 bits of each element's random word, over 2^24: uniform in [0, 1).
void draw_uniform(const isa::RandomStream& stream, std::size_t size, float* numbers);

/// How a tensor is cut for these masks: in whole rows where ranks within rows are needed.
/// @throws InvalidArgument, under the name of the operation, unless there is a mask for each source and they fit.
RowChunks mask_chunks(const char* operation, const std::vector<Mask>& masks, std::size_t size);

/// Thresholds whose budget of equal keys may end somewhere inside the tensor, and how far it goes before each chunk.
///
/// Chunks are handed out in order, so whoever waits here for the chunk before its own waits for a strand that is at work and
/// that does nothing on the way which could fail.
class Ties {
 public:
  Ties(const std::vector<Mask>& masks, std::size_t size, std::size_t chunks);

  struct Place {
    std::size_t source;
    Threshold threshold;
    bool is_top;
  };

  const std::vector<Place>& places() const { return places_; }

  /// Says how many keys equal to each threshold the chunk has, and fills `before` with how many the chunks before it have.
  void exchange(std::size_t chunk, const std::uint64_t* own, std::uint64_t* before);

 private:
  std::vector<Place> places_;
  std::vector<std::uint64_t> until_;  // per chunk and place: in this chunk and all before it
  std::vector<std::atomic<bool>> is_known_;
};

/// One strand's masks.
class Masking {
 public:
  Masking(const Sources& sources, const Source* base, const std::vector<Mask>& masks, Ties& ties);

  /// Looks at a whole chunk, once, before its tiles are masked.
  void begin(std::size_t chunk, const Span& span);

  /// Whether the masks of all sources are nothing but keys for these elements, those above which are kept; fills K of them.
  bool plain_keys(std::size_t begin, std::size_t count, std::int32_t* keys) const;

  /// Whether the masks of all sources are nothing but what was drawn before; fills K of `Mask::drawn`.
  bool plain_bits(const std::uint64_t** bits) const;

  /// Makes zero of what the mask of source k drops; `terms` are those from element `begin` on.
  void apply(std::size_t k, std::size_t begin, std::size_t count, bool inverse, float* terms);

 private:
  /// Positions within the chunk before which keys equal to a threshold belong to the largest.
  struct Cuts {
    std::size_t top, but;
  };

  void resolve_ties(std::size_t chunk);
  std::size_t cut_of(const Ties::Place& place, std::uint64_t remaining);
  void rank(std::size_t k);
  void draw(const Mask& mask, std::size_t k, std::size_t begin, std::size_t count, isa::MaskedTile& tile);

  const Sources& sources_;
  const Source* const base_;
  const std::vector<Mask>& masks_;
  Ties& ties_;
  Tile look_;  // for looking ahead; its counts are nobody's
  Span span_{};
  std::vector<Cuts> cuts_;
  std::vector<std::uint32_t> words_;
  std::vector<std::vector<float>> probabilities_;
  std::vector<std::uint64_t> order_, spare_;
  std::vector<std::uint64_t> own_, before_;  // equal keys; made beforehand, so that no exchange can fail
};

}  // namespace minerua
