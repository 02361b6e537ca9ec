#include "core/select.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "core/chunks.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "isa/loops.hpp"

namespace minerua {
namespace {

/// Bins of a range, at most: every strand has counters of its own (256 KiB a source).
constexpr std::size_t own_bins = std::size_t{1} << 16;

/// Numbers that one strand counts before its 32-bit counters could overflow.
constexpr std::size_t emptied_after = std::size_t{1} << 31;

/// Keys of a source that a strand lists, at most (32 MiB).
std::size_t longest_list(std::size_t size) { return std::min(size / 16, std::size_t{1} << 23) + own_bins; }

/// The counters of one pass over all strands.
struct Totals {
  Totals(const std::vector<KeyRange>& ranges_, std::size_t size)
      : ranges(ranges_), histograms(ranges_.size()), longest(longest_list(size)) {
    for (std::size_t k = 0; k < ranges.size(); ++k) histograms[k].bins.resize(ranges[k].is_listed ? 0 : ranges[k].bins());
  }

  const std::vector<KeyRange>& ranges;
  std::vector<KeyHistogram> histograms;
  const std::size_t longest;
  std::mutex mutex{};
};

/// The counters of one strand.
class OwnCounts {
 public:
  explicit OwnCounts(Totals& totals)
      : totals_(totals), above_(totals.ranges.size()), bins_(totals.ranges.size()), listed_(totals.ranges.size()) {
    for (std::size_t k = 0; k < bins_.size(); ++k) bins_[k].resize(totals.histograms[k].bins.size());
  }

  void add(std::size_t k, const isa::KeyCounts& counts, const std::uint32_t* keys) {
    const KeyRange& range = totals_.ranges[k];
    above_[k] += counts.above;
    if (!range.is_listed)
      for (std::size_t i = 0; i < counts.inside; ++i) ++bins_[k][(keys[i] - range.low) >> range.shift];
    else if (listed_[k].size() <= totals_.longest)
      listed_[k].insert(listed_[k].end(), keys, keys + counts.inside);
  }

  /// Adds everything to the totals and starts anew.
  void empty() {
    const std::lock_guard<std::mutex> lock(totals_.mutex);
    for (std::size_t k = 0; k < bins_.size(); ++k) {
      KeyHistogram& total = totals_.histograms[k];
      total.above += above_[k];
      for (std::size_t bin = 0; bin < bins_[k].size(); ++bin) total.bins[bin] += bins_[k][bin];
      total.is_complete = total.is_complete && listed_[k].size() <= totals_.longest;
      total.listed.push_back(std::move(listed_[k]));
      std::fill(bins_[k].begin(), bins_[k].end(), 0);
      listed_[k] = {};
      above_[k] = 0;
    }
  }

 private:
  Totals& totals_;
  std::vector<std::uint64_t> above_;
  std::vector<std::vector<std::uint32_t>> bins_, listed_;
};

void count_chunk(const Span& span, const std::vector<KeyRange>& ranges, Tile& tile, std::uint32_t* keys,
                 OwnCounts& counts) {
  const auto sort_out = isa::loops().sort_out_keys[static_cast<int>(tile.terms_type())];
  over_tiles(span, tile.capacity(), span.end, [&](std::size_t begin, std::size_t n) {
    tile.start(begin, n);
    for (std::size_t k = 0; k < ranges.size(); ++k) {
      const auto low = static_cast<std::int32_t>(ranges[k].low), high = static_cast<std::int32_t>(ranges[k].high);
      counts.add(k, sort_out(tile.terms(k, begin, n), low, high, keys), keys);
    }
  });
}

std::vector<KeyHistogram> count_all(const Sources& sources, const Source* base, const std::vector<KeyRange>& ranges) {
  const RowChunks chunks(sources[0].size, sources[0].size);
  Totals totals(ranges, sources[0].size);
  over_strands(chunks.count(), [&](Claims& claims) {
    Tile tile(sources, base);
    std::vector<std::uint32_t> keys(tile.capacity() + 16);
    OwnCounts counts(totals);
    std::size_t counted = 0;
    for (std::size_t chunk; claims.next(chunk);) {
      count_chunk(chunks.at(chunk), ranges, tile, keys.data(), counts);
      counted += chunk_elements;
      if (counted >= emptied_after) counts.empty(), counted = 0;
    }
    counts.empty();
  });
  return std::move(totals.histograms);
}

// ── ranks ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A key, and how many of those equal to it come before.
struct RankedKey {
  std::uint32_t key;
  std::uint64_t rank;
};

/// The key of the rank-th largest in [low, high], from 0, or none below low: by counting in ever finer bins, which takes two
/// or three looks, where comparing takes twenty.
RankedKey key_of_rank(const std::vector<KeyList>& lists, std::uint64_t rank, std::uint32_t low, std::uint32_t high) {
  constexpr std::uint32_t most_bins = 1u << 11;
  for (;;) {
    unsigned shift = 0;
    while ((high - low) >> shift >= most_bins) ++shift;
    // By turns, because equal keys often follow one another; keys outside end beyond the bins in use.
    std::uint64_t counts[2][most_bins + 1] = {};
    for (const KeyList& keys : lists)
      for (std::size_t i = 0; i < keys.size(); ++i) ++counts[i % 2][std::min((keys[i] - low) >> shift, most_bins)];
    std::uint32_t bin = (high - low) >> shift;
    for (; rank >= counts[0][bin] + counts[1][bin]; --bin) rank -= counts[0][bin] + counts[1][bin];
    low += bin << shift;
    high = std::min(high, low + ((1u << shift) - 1));
    if (shift == 0) return {low, rank};
  }
}

// ── a sample ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The sample: runs of neighbours (a cache line of 32-bit numbers), one at a random place of each of many equal parts. The
/// larger it is, the fewer keys have to be told apart, each of which costs twenty comparisons.
constexpr std::size_t run_elements = 16, most_runs = 8192, elements_per_run = 2048;

/// Below this, two passes over what is in the cache cost less than a sample.
constexpr std::size_t sampled_size = std::size_t{1} << 19;

/// Source: Steele 2014, Fast splittable pseudorandom number generators, figure 17 (the finalizer).
std::uint64_t scrambled(std::uint64_t x) {
  x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Keys of every source.
std::vector<KeyList> sample_keys(const Sources& sources, const Source* base) {
  const std::size_t runs = std::min(most_runs, sources[0].size / elements_per_run);
  const std::size_t part = sources[0].size / runs;
  constexpr std::size_t together = 128;
  std::vector<KeyList> sample(sources.size(), KeyList(runs * run_elements + run_elements));
  parallel_for((runs + together - 1) / together, [&](std::size_t group) {
    Tile tile(sources, base);
    const auto sort_out = isa::loops().sort_out_keys[static_cast<int>(tile.terms_type())];
    std::uint32_t keys[2 * run_elements];  // sort_out_keys may write beyond what it returns
    for (std::size_t run = group * together; run < std::min(runs, (group + 1) * together); ++run) {
      const std::size_t begin = run * part + scrambled(run) % (part - run_elements + 1);
      tile.start(begin, run_elements);
      for (std::size_t k = 0; k < sources.size(); ++k) {
        sort_out(tile.terms(k, begin, run_elements), 0, static_cast<std::int32_t>(key_limit), keys);
        std::copy_n(keys, run_elements, sample[k].begin() + static_cast<std::ptrdiff_t>(run * run_elements));
      }
    }
  });
  for (KeyList& keys : sample) keys.resize(runs * run_elements);
  return sample;
}

/// Where the wanted rank is, but for one case in ten thousand: four standard deviations of a sample's rank to either side.
/// Neighbours are more alike than strangers; a range that misses costs one more pass and nothing else.
KeyRange bracket(const KeyList& sample, double fraction) {
  const double count = static_cast<double>(sample.size()), expected = fraction * count;
  const std::vector<KeyList> lists{sample};
  const auto key_at = [&](double rank) { return key_of_rank(lists, static_cast<std::uint64_t>(rank), 0, key_limit).key; };
  const double margin = 4.0 * std::sqrt(expected * (1.0 - fraction)) + 16.0;
  KeyRange range;
  if (expected - margin >= 0.0) range.high = key_at(expected - margin);
  if (expected + margin < count) range.low = key_at(expected + margin);
  return range;
}

// ── the search ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The search for one source's threshold: it lies in [floor, ceiling], and the next pass looks at `range`.
struct Search {
  std::uint64_t wanted = 0;
  std::uint32_t floor = 0, ceiling = key_limit;
  KeyRange range{};
  Threshold found{};
  bool is_done = false;

  /// @param few Whether few numbers lie in this range, by a sample or because there are no more.
  void look_at(std::uint32_t low, std::uint32_t high, bool few = false) {
    range = {low, high, 0, false};
    range.is_listed = few && range.bins() > own_bins;
    while (!range.is_listed && range.bins() > own_bins) ++range.shift;
  }

  void learn(KeyHistogram& seen);
  void learn_list(KeyHistogram& seen);
};

/// Looks for the threshold among the keys that were listed, if it is there.
void Search::learn_list(KeyHistogram& seen) {
  const std::uint64_t rank = wanted - seen.above - 1;
  if (!seen.is_complete) return look_at(floor, ceiling);
  std::uint64_t listed = 0;
  for (const KeyList& keys : seen.listed) listed += keys.size();
  if (rank >= listed) {  // it is below
    ceiling = range.low - 1;
    return look_at(floor, ceiling);
  }
  const RankedKey ranked = key_of_rank(seen.listed, rank, range.low, range.high);
  found = {ranked.key, ranked.rank + 1};
  is_done = true;
}

void Search::learn(KeyHistogram& seen) {
  if (seen.above >= wanted) {  // the sample misled: it is above
    floor = range.high + 1;
    return look_at(floor, ceiling);
  }
  if (range.is_listed) return learn_list(seen);
  std::uint64_t before = seen.above;
  std::size_t bin = seen.bins.size();
  while (bin > 0 && before + seen.bins[bin - 1] < wanted) before += seen.bins[--bin];
  if (bin == 0) {  // it is below
    ceiling = range.low - 1;
    return look_at(floor, ceiling);
  }
  floor = range.low + (static_cast<std::uint32_t>(bin - 1) << range.shift);
  ceiling = std::min(range.high, floor + ((1u << range.shift) - 1));
  is_done = range.shift == 0;
  if (is_done) found = {floor, wanted - before};
  look_at(floor, ceiling);
}

void search_sample(const Sources& sources, const Source* base, std::vector<Search>& searches) {
  const std::vector<KeyList> sample = sample_keys(sources, base);
  const auto size = static_cast<double>(sources[0].size);
  parallel_for(searches.size(), [&](std::size_t k) {
    const KeyRange range = bracket(sample[k], static_cast<double>(searches[k].wanted) / size);
    searches[k].look_at(range.low, range.high, true);
  });
}

/// One pass for those that are not done; false if all are.
bool search_further(const Sources& sources, const Source* base, std::vector<Search>& searches) {
  Sources left;
  std::vector<KeyRange> ranges;
  std::vector<Search*> open;
  for (std::size_t k = 0; k < searches.size(); ++k) {
    if (searches[k].is_done) continue;
    left.push_back(sources[k]);
    ranges.push_back(searches[k].range);
    open.push_back(&searches[k]);
  }
  if (open.empty()) return false;
  std::vector<KeyHistogram> seen = count_all(left, base, ranges);
  parallel_for(open.size(), [&](std::size_t i) { open[i]->learn(seen[i]); });
  return true;
}

}  // namespace

std::vector<KeyHistogram> count_keys(const char* operation, const Sources& sources, const Source* base,
                                     const std::vector<KeyRange>& ranges) {
  expect_alike(operation, sources, base);
  MINERUA_EXPECTS(ranges.size() == sources.size(),
                  operation << ": " << ranges.size() << " ranges for " << sources.size() << " sources");
  for (const KeyRange& range : ranges)
    MINERUA_EXPECTS(range.low <= range.high && range.high <= key_limit && range.bins() <= own_bins,
                    operation << ": keys " << range.low << " to " << range.high << " in " << range.bins() << " bins");
  return count_all(sources, base, ranges);
}

std::vector<Threshold> select_largest(const Sources& sources, const Source* base,
                                      const std::vector<std::uint64_t>& counts) {
  expect_alike("select_largest", sources, base);
  MINERUA_EXPECTS(counts.size() == sources.size(),
                  "select_largest: " << counts.size() << " counts for " << sources.size() << " sources");
  std::vector<Search> searches(sources.size());
  for (std::size_t k = 0; k < searches.size(); ++k) {
    MINERUA_EXPECTS(counts[k] <= sources[k].size, "select_largest: the " << counts[k] << " largest of source " << k
                                                                         << ", which has " << sources[k].size);
    searches[k].wanted = counts[k];
    searches[k].found = {key_limit + 1, 0};
    searches[k].is_done = counts[k] == 0;
    searches[k].look_at(0, key_limit, sources[0].size <= own_bins);
  }
  if (sources[0].size >= sampled_size) search_sample(sources, base, searches);
  while (search_further(sources, base, searches)) continue;
  std::vector<Threshold> found;
  for (const Search& search : searches) found.push_back(search.found);
  return found;
}

}  // namespace minerua
