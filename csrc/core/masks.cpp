#include "core/masks.hpp"

#include <cmath>
#include <thread>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/ranks.hpp"

namespace minerua {
namespace {

/// Elements of a chunk of whole rows: their probabilities are held beside it.
constexpr std::size_t ranked_elements = std::size_t{1} << 14;

/// Random words below this are kept.
double limit_of(float keep) { return std::floor(static_cast<double>(keep) * 0x1p32); }

constexpr auto unlimited = static_cast<std::size_t>(-1);

/// Whether the budget of equal keys may end inside a tensor of this size.
bool may_end_inside(const Threshold& threshold, std::size_t size) {
  return threshold.key <= key_limit && threshold.equal > 0 && threshold.equal < size;
}

bool has_limits(const Mask& mask, std::size_t size) {
  return mask.top.key > 0 || mask.top.equal < size || mask.but.key <= key_limit;
}

/// The limit for `count` elements from `offset` on, of a chunk that keeps equal keys before `cut`.
isa::KeyLimit limit_of(const Threshold& threshold, std::size_t cut, std::size_t offset, std::size_t count) {
  if (threshold.key > key_limit) return {static_cast<std::int32_t>(key_limit), 0};
  const auto key = static_cast<std::int32_t>(threshold.key);
  if (cut <= offset) return {key, 0};
  if (cut - offset >= count) return {key - 1, 0};
  return {key, static_cast<std::int32_t>(cut - offset)};
}

}  // namespace

RowChunks mask_chunks(const char* operation, const std::vector<Mask>& masks, std::size_t size) {
  std::size_t columns = 0;
  for (std::size_t k = 0; k < masks.size(); ++k) {
    if (!masks[k].is_ranked()) continue;
    const std::size_t wanted = columns == 0 ? masks[k].columns : columns;
    MINERUA_EXPECTS(masks[k].columns == wanted && size % wanted == 0 && wanted <= key_limit,
                    operation << ": mask " << k << " has rows of " << masks[k].columns << " elements; must be " << wanted
                              << ", and divide " << size);
    columns = wanted;
  }
  return columns == 0 ? RowChunks(size, size) : RowChunks(size, columns, std::max(columns, ranked_elements));
}

Ties::Ties(const std::vector<Mask>& masks, std::size_t size, std::size_t chunks) {
  for (std::size_t k = 0; k < masks.size(); ++k) {
    if (may_end_inside(masks[k].top, size)) places_.push_back({k, masks[k].top, true});
    if (may_end_inside(masks[k].but, size)) places_.push_back({k, masks[k].but, false});
  }
  until_.resize(chunks * places_.size());
  is_known_ = std::vector<std::atomic<bool>>(chunks);
}

void Ties::exchange(std::size_t chunk, const std::uint64_t* own, std::uint64_t* before) {
  const std::size_t count = places_.size();
  std::fill(before, before + count, 0);
  if (chunk > 0) {
    while (!is_known_[chunk - 1].load(std::memory_order_acquire)) std::this_thread::yield();
    std::copy_n(until_.data() + (chunk - 1) * count, count, before);
  }
  for (std::size_t i = 0; i < count; ++i) until_[chunk * count + i] = before[i] + own[i];
  is_known_[chunk].store(true, std::memory_order_release);
}

bool Masking::plain_keys(std::size_t begin, std::size_t count, std::int32_t* keys) const {
  for (std::size_t k = 0; k < masks_.size(); ++k) {
    if (masks_[k].draws || masks_[k].but.key <= key_limit) return false;
    const isa::KeyLimit top = limit_of(masks_[k].top, cuts_[k].top, begin - span_.begin, count);
    if (top.cut != 0) return false;
    keys[k] = top.key;
  }
  return true;
}

bool Masking::plain_bits(const std::uint64_t** bits) const {
  for (std::size_t k = 0; k < masks_.size(); ++k) {
    const Mask& mask = masks_[k];
    if (mask.drawn == nullptr || mask.is_ranked() || has_limits(mask, sources_[k].size)) return false;
    bits[k] = mask.drawn;
  }
  return true;
}

Masking::Masking(const Sources& sources, const Source* base, const std::vector<Mask>& masks, Ties& ties)
    : sources_(sources),
      base_(base),
      masks_(masks),
      ties_(ties),
      look_(sources, base),
      cuts_(masks.size()),
      words_(look_.capacity() + 2 * 64 + 16),
      probabilities_(masks.size()),
      own_(ties.places().size()),
      before_(ties.places().size()) {
  for (std::size_t k = 0; k < masks.size(); ++k) {
    const auto all_or_none = [](const Threshold& threshold) { return threshold.equal == 0 ? 0 : unlimited; };
    cuts_[k] = {all_or_none(masks[k].top), all_or_none(masks[k].but)};
  }
}

void Masking::begin(std::size_t chunk, const Span& span) {
  span_ = span;
  if (!ties_.places().empty()) resolve_ties(chunk);
  for (std::size_t k = 0; k < masks_.size(); ++k)
    if (masks_[k].is_ranked()) rank(k);
}

void Masking::resolve_ties(std::size_t chunk) {
  const std::vector<Ties::Place>& places = ties_.places();
  const auto count_equal = isa::loops().count_equal_keys[static_cast<int>(look_.terms_type())];
  std::fill(own_.begin(), own_.end(), 0);
  over_tiles(span_, look_.capacity(), span_.end, [&](std::size_t begin, std::size_t n) {
    look_.start(begin, n);
    isa::Terms terms{};
    for (std::size_t i = 0; i < places.size(); ++i) {
      // A mask's second threshold finds its source's tile read.
      const bool is_read = i > 0 && places[i - 1].source == places[i].source;
      if (!is_read) terms = look_.terms(places[i].source, begin, n);
      own_[i] += count_equal(terms, static_cast<std::int32_t>(places[i].threshold.key));
    }
  });
  ties_.exchange(chunk, own_.data(), before_.data());
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::uint64_t budget = places[i].threshold.equal;
    const std::uint64_t remaining = budget - std::min(budget, before_[i]);
    std::size_t cut = remaining == 0 ? 0 : unlimited;
    if (remaining > 0 && remaining < own_[i]) cut = cut_of(places[i], remaining);
    (places[i].is_top ? cuts_[places[i].source].top : cuts_[places[i].source].but) = cut;
  }
}

/// Position within the chunk after the last equal key that the budget holds.
std::size_t Masking::cut_of(const Ties::Place& place, std::uint64_t remaining) {
  std::size_t cut = 0;
  over_tiles(span_, look_.capacity(), span_.end, [&](std::size_t begin, std::size_t n) {
    if (remaining == 0) return;
    look_.read_base(begin, n);
    const float* const terms = look_.read_term(place.source, begin, n);
    for (std::size_t i = 0; i < n && remaining > 0; ++i) {
      if ((bits_of_float(terms[i]) & key_limit) != place.threshold.key) continue;
      --remaining;
      cut = begin - span_.begin + i + 1;
    }
  });
  return cut;
}

void Masking::rank(std::size_t k) {
  const Mask& mask = masks_[k];
  std::vector<float>& values = probabilities_[k];
  values.resize(span_.end - span_.begin + 16);
  over_tiles(span_, look_.capacity(), span_.end, [&](std::size_t begin, std::size_t n) {
    look_.read_base(begin, n);
    std::copy_n(look_.read_term(k, begin, n), n, values.data() + (begin - span_.begin));
  });
  for (std::size_t first = 0; first < span_.end - span_.begin; first += mask.columns)
    replace_by_probabilities(values.data() + first, mask.columns, mask.keep, mask.spread, order_, spare_);
}

void Masking::apply(std::size_t k, std::size_t begin, std::size_t count, bool inverse, float* terms) {
  const Mask& mask = masks_[k];
  const std::size_t offset = begin - span_.begin;
  isa::MaskedTile tile{};
  tile.top = limit_of(mask.top, cuts_[k].top, offset, count);
  tile.but = limit_of(mask.but, cuts_[k].but, offset, count);
  tile.has_limits = has_limits(mask, sources_[k].size);
  if (mask.draws) draw(mask, k, begin, count, tile);
  tile.inverse = inverse && mask.draws;
  if (tile.has_limits || tile.kind != isa::RandomKind::none || tile.inverse) isa::loops().mask_terms(tile, terms, count);
}

void Masking::draw(const Mask& mask, std::size_t k, std::size_t begin, std::size_t count, isa::MaskedTile& tile) {
  tile.probability = mask.keep;
  if (mask.is_ranked()) {
    tile.kind = isa::RandomKind::ranked;
    tile.probabilities = probabilities_[k].data() + (begin - span_.begin);
  } else if (mask.drawn != nullptr) {
    tile.kind = isa::RandomKind::drawn;
    tile.bits = mask.drawn;
    tile.first_bit = begin;
    return;
  } else {
    const double limit = limit_of(mask.keep);
    if (limit >= 0x1p32) return;  // all are drawn
    if (!(limit > 0.0)) {         // none is
      tile.has_limits = true;
      tile.top = {static_cast<std::int32_t>(key_limit), 0};
      return;
    }
    tile.kind = isa::RandomKind::even;
    tile.limit = static_cast<std::uint32_t>(limit);
  }
  const std::size_t first = begin / 64, last = (begin + count + 63) / 64;
  isa::loops().random_words(mask.stream, first, last - first, words_.data());
  tile.words = words_.data() + begin % 64;
}

void draw_uniform(const isa::RandomStream& stream, std::size_t size, float* numbers) {
  constexpr std::size_t blocks = 16;
  std::uint32_t words[64 * blocks];
  for (std::size_t begin = 0; begin < size; begin += 64 * blocks) {
    const std::size_t count = std::min(64 * blocks, size - begin);
    isa::loops().random_words(stream, begin / 64, (count + 63) / 64, words);
    for (std::size_t i = 0; i < count; ++i) numbers[begin + i] = static_cast<float>(words[i] >> 8) * 0x1p-24f;
  }
}

void draw(const Mask& mask, std::size_t size, std::uint64_t* bits) {
  const std::size_t numbers = size / 64 + 2;
  const double limit = limit_of(mask.keep);
  if (limit >= 0x1p32 || !(limit > 0.0)) {
    std::fill(bits, bits + numbers, limit > 0.0 ? ~std::uint64_t{0} : 0);
    return;
  }
  constexpr std::size_t together = chunk_elements / 64;
  parallel_for((numbers + together - 1) / together, [&](std::size_t chunk) {
    const std::size_t first = chunk * together, count = std::min(together, numbers - first);
    isa::loops().draw_bits(mask.stream, first, count, static_cast<std::uint32_t>(limit), bits + first);
  });
}

}  // namespace minerua
