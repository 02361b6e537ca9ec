#include "core/masked.hpp"

#include <mutex>

#include "core/error.hpp"

namespace minerua {
namespace {

RowChunks checked_chunks(const char* operation, const Sources& sources, const Source* base,
                         const std::vector<Mask>& masks) {
  expect_alike(operation, sources, base);
  MINERUA_EXPECTS(masks.size() == sources.size(),
                  operation << ": " << masks.size() << " masks for " << sources.size() << " sources");
  return mask_chunks(operation, masks, sources[0].size);
}

/// One strand's part of a merge.
class Merging {
 public:
  Merging(const Sources& sources, const Source* base, const std::vector<Mask>& masks, Ties& ties,
          const isa::MergeRule& rule, const Target& target)
      : sources_(sources),
        base_(base),
        masks_(masks),
        rule_(rule),
        dtype_(static_cast<int>(target.dtype)),
        tile_(sources, base),
        masking_(sources, base, masks, ties),
        writer_(target),
        is_direct_(tile_.is_stored() && tile_.terms_type() == target.dtype && sources.size() <= isa::most_kept) {
    are_drawn_ = is_direct_ && masking_.plain_bits(bits_) && std::none_of(masks.begin(), masks.end(), is_inverse);
  }

  void merge(std::size_t chunk, const Span& span) {
    masking_.begin(chunk, span);
    const bool have_keys = is_direct_ && !are_drawn_ && masking_.plain_keys(span.begin, span.end - span.begin, keys_);
    if (are_drawn_ || have_keys)
      over_tiles(span, direct_elements, span.end, [&](std::size_t begin, std::size_t n) { merge_kept(begin, n); });
    else
      over_tiles(span, tile_.capacity(), span.end, [&](std::size_t begin, std::size_t n) { merge_tile(begin, n); });
    writer_.finish();
  }

  void add_counts(std::int64_t* counts) const {
    for (std::size_t k = 0; k < tile_.not_finite.size(); ++k) counts[k] += tile_.not_finite[k];
    counts[tile_.not_finite.size()] += writer_.not_finite;
  }

 private:
  /// A multiple of 64; as much as a first-level cache holds of the result.
  static constexpr std::size_t direct_elements = 4096;

  static bool is_inverse(const Mask& mask) { return mask.inverse; }

  void merge_tile(std::size_t begin, std::size_t n) {
    tile_.read(begin, n);
    for (std::size_t k = 0; k < sources_.size(); ++k) masking_.apply(k, begin, n, masks_[k].inverse, tile_.term(k));
    const isa::MaskedSums sums{tile_.base(), tile_.term(0), tile_.stride(), rule_, n};
    isa::loops().write_masked[dtype_](sums, writer_.place(n));
    writer_.take(begin, n);
  }

  /// In one go from what is stored to what is written.
  void merge_kept(std::size_t begin, std::size_t n) {
    const void* at[isa::most_kept];
    for (std::size_t k = 0; k < sources_.size(); ++k) at[k] = sources_[k].stored.at(begin);
    const isa::KeptSums sums{base_ == nullptr ? nullptr : base_->stored.at(begin),
                             at,
                             are_drawn_ ? nullptr : keys_,
                             are_drawn_ ? bits_ : nullptr,
                             begin,
                             rule_,
                             n};
    const bool is_finite = isa::loops().write_kept[dtype_](sums, writer_.place(n));
    writer_.take(begin, n, is_finite);
    if (!is_finite) tile_.count_stored(begin, n);
  }

  const Sources& sources_;
  const Source* const base_;
  const std::vector<Mask>& masks_;
  const isa::MergeRule& rule_;
  const int dtype_;
  Tile tile_;
  Masking masking_;
  Writer writer_;
  const bool is_direct_;  // everything is stored in the target's type
  bool are_drawn_ = false;
  std::int32_t keys_[isa::most_kept] = {};
  const std::uint64_t* bits_[isa::most_kept] = {};
};

isa::MagnitudeSums masked_sum(Tile& tile, Masking& masking, std::size_t k, std::size_t begin, std::size_t n) {
  const auto sum = isa::loops().sum_magnitudes[static_cast<int>(DType::float32)];
  const isa::Terms terms{tile.read_term(k, begin, n), nullptr, n};
  const double all = sum(terms, nullptr, 0).all;
  masking.apply(k, begin, n, false, tile.term(k));
  return {all, sum(terms, nullptr, 0).all};
}

}  // namespace

void merge_masked(const Sources& sources, const Source* base, const std::vector<Mask>& masks, const MaskedMerge& how,
                  const Target& target, std::int64_t* counts) {
  const RowChunks chunks = checked_chunks("merge_masked", sources, base, masks);
  MINERUA_EXPECTS(how.factors != nullptr && (how.shares == nullptr || how.votes != nullptr),
                  "merge_masked: needs factors, and votes where there are shares");
  const isa::MergeRule rule{how.factors, how.votes, how.shares, how.scale, sources.size()};
  std::fill(counts, counts + sources.size() + 2, 0);
  Ties ties(masks, sources[0].size, chunks.count());
  std::mutex mutex;
  over_strands(chunks.count(), [&](Claims& claims) {
    Merging merging(sources, base, masks, ties, rule, target);
    for (std::size_t chunk; claims.next(chunk);) merging.merge(chunk, chunks.at(chunk));
    const std::lock_guard<std::mutex> lock(mutex);
    merging.add_counts(counts);
  });
}

void masked_sums(const Sources& sources, const Source* base, const std::vector<Mask>& masks, double* sums) {
  const RowChunks chunks = checked_chunks("masked_sums", sources, base, masks);
  const std::size_t count = sources.size();
  std::vector<double> partial(chunks.count() * count * 2, 0.0);  // of every chunk, in order
  Ties ties(masks, sources[0].size, chunks.count());
  over_strands(chunks.count(), [&](Claims& claims) {
    Tile tile(sources, base);
    Masking masking(sources, base, masks, ties);
    std::vector<const std::uint64_t*> bits(count);
    const bool are_drawn = masking.plain_bits(bits.data());
    const auto sum = isa::loops().sum_magnitudes[static_cast<int>(tile.terms_type())];
    for (std::size_t chunk; claims.next(chunk);) {
      masking.begin(chunk, chunks.at(chunk));
      over_tiles(chunks.at(chunk), tile.capacity(), sources[0].size, [&](std::size_t begin, std::size_t n) {
        are_drawn ? tile.start(begin, n) : tile.read_base(begin, n);
        for (std::size_t k = 0; k < count; ++k) {
          const isa::MagnitudeSums found = are_drawn ? sum(tile.terms(k, begin, n), bits[k], begin)
                                                     : masked_sum(tile, masking, k, begin, n);
          double* const own = partial.data() + (chunk * count + k) * 2;
          own[0] += found.all, own[1] += found.kept;
        }
      });
    }
  });
  std::fill(sums, sums + count * 2, 0.0);
  for (std::size_t i = 0; i < partial.size(); ++i) sums[i % (count * 2)] += partial[i];
}

}  // namespace minerua
