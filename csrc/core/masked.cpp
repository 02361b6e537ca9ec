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

}  // namespace

void merge_masked(const Sources& sources, const Source* base, const std::vector<Mask>& masks, const MaskedMerge& how,
                  const Target& target, std::int64_t* counts) {
  const RowChunks chunks = checked_chunks("merge_masked", sources, base, masks);
  MINERUA_EXPECTS(how.factors != nullptr && (how.shares == nullptr || how.votes != nullptr),
                  "merge_masked: needs factors, and votes where there are shares");
  const std::size_t count = sources.size();
  std::fill(counts, counts + count + 2, 0);
  Ties ties(masks, sources[0].size, chunks.count());
  std::mutex mutex;
  over_strands(chunks.count(), [&](Claims& claims) {
    Tile tile(sources, base);
    Masking masking(sources, base, masks, ties);
    Writer writer(target);
    for (std::size_t chunk; claims.next(chunk);) {
      masking.begin(chunk, chunks.at(chunk));
      over_tiles(chunks.at(chunk), tile.capacity(), sources[0].size, [&](std::size_t begin, std::size_t n) {
        tile.read(begin, n);
        for (std::size_t k = 0; k < count; ++k) masking.apply(k, begin, n, masks[k].inverse, tile.term(k));
        const isa::MaskedSums sums{tile.base(), tile.term(0), tile.stride(), count, how.factors,
                                   how.votes,   how.shares,   how.scale,     n};
        isa::loops().write_masked[static_cast<int>(target.dtype)](sums, writer.place(n));
        writer.take(begin, n);
      });
      writer.finish();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::size_t k = 0; k <= count; ++k) counts[k] += tile.not_finite[k];
    counts[count + 1] += writer.not_finite;
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
    for (std::size_t chunk; claims.next(chunk);) {
      masking.begin(chunk, chunks.at(chunk));
      over_tiles(chunks.at(chunk), tile.capacity(), sources[0].size, [&](std::size_t begin, std::size_t n) {
        tile.read_base(begin, n);
        for (std::size_t k = 0; k < count; ++k) {
          float* const terms = tile.read_term(k, begin, n);
          double* const own = partial.data() + (chunk * count + k) * 2;
          own[0] += isa::loops().sum_magnitudes(terms, n);
          masking.apply(k, begin, n, false, terms);
          own[1] += isa::loops().sum_magnitudes(terms, n);
        }
      });
    }
  });
  std::fill(sums, sums + count * 2, 0.0);
  for (std::size_t i = 0; i < partial.size(); ++i) sums[i % (count * 2)] += partial[i];
}

}  // namespace minerua
