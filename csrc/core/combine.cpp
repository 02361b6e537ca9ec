#include "core/combine.hpp"

#include <mutex>

#include "core/chunks.hpp"
#include "core/error.hpp"
#include "isa/loops.hpp"

namespace minerua {
namespace {

std::size_t row_length(const char* operation, std::size_t size, std::size_t rows) {
  MINERUA_EXPECTS(rows > 0 && size % rows == 0, operation << ": " << size << " elements cannot be cut into " << rows
                                                          << " rows of equal length");
  return std::max<std::size_t>(1, size / rows);
}

void add_counts(const std::vector<std::int64_t>& read, const Writer& writer, std::int64_t* counts) {
  for (std::size_t k = 0; k < read.size(); ++k) counts[k] += read[k];
  counts[read.size()] += writer.not_finite;
}

/// What one call of `combine` has to do.
struct Plan {
  const Sources& sources;
  const Source* base;
  const float* coefficients;
  std::size_t row;
  const Target& target;

  const float* coefficients_at(std::size_t begin) const { return coefficients + begin / row * sources.size(); }

  /// Whether everything lies there in the target's type, to be read as it is.
  bool is_stored() const { return sources[0].stored.dtype == target.dtype && are_stored(sources, base); }
};

/// Sums by way of floats: for types that differ, and for sources that have to be computed.
class TileSums {
 public:
  explicit TileSums(const Plan& plan) : plan_(plan), tile_(plan.sources, plan.base) {}

  std::size_t capacity() const { return tile_.capacity(); }
  const std::vector<std::int64_t>& not_finite() const { return tile_.not_finite; }

  void write(std::size_t begin, std::size_t n, Writer& writer) {
    tile_.read(begin, n);
    const isa::Sums sums{tile_.base(), tile_.term(0), tile_.stride(), plan_.sources.size(), plan_.coefficients_at(begin),
                         1,            n};
    isa::loops().write_children[static_cast<int>(plan_.target.dtype)](sums, writer.place(n), n);
    writer.take(begin, n);
  }

 private:
  const Plan& plan_;
  Tile tile_;
};

/// Sums in one go.
class StoredSums {
 public:
  explicit StoredSums(const Plan& plan) : plan_(plan), at_(plan.sources.size()), not_finite_(plan.sources.size() + 1) {}

  /// A multiple of 64; as much as a first-level cache holds of the result.
  std::size_t capacity() const { return 4096; }
  const std::vector<std::int64_t>& not_finite() const { return not_finite_; }

  void write(std::size_t begin, std::size_t n, Writer& writer) {
    for (std::size_t k = 0; k < at_.size(); ++k) at_[k] = plan_.sources[k].stored.at(begin);
    const void* const base = plan_.base == nullptr ? nullptr : plan_.base->stored.at(begin);
    const isa::StoredSums sums{base, at_.data(), at_.size(), plan_.coefficients_at(begin), n};
    const auto dtype = static_cast<int>(plan_.target.dtype);
    const bool is_finite = isa::loops().combine_stored[dtype](sums, writer.place(n));
    writer.take(begin, n, is_finite);
    if (is_finite) return;
    const auto count = isa::loops().count_not_finite[dtype];
    for (std::size_t k = 0; k < at_.size(); ++k) not_finite_[k] += static_cast<std::int64_t>(count(at_[k], n));
    if (base != nullptr) not_finite_.back() += static_cast<std::int64_t>(count(base, n));
  }

 private:
  const Plan& plan_;
  std::vector<const void*> at_;
  std::vector<std::int64_t> not_finite_;
};

template <class Work>
void write_all(const Plan& plan, std::int64_t* counts) {
  std::mutex mutex;
  const RowChunks chunks(plan.sources[0].size, plan.row);
  over_strands(chunks.count(), [&](Claims& claims) {
    Work work(plan);
    Writer writer(plan.target);
    for (std::size_t chunk; claims.next(chunk);) {
      over_tiles(chunks.at(chunk), work.capacity(), plan.row,
                 [&](std::size_t begin, std::size_t n) { work.write(begin, n, writer); });
      writer.finish();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    add_counts(work.not_finite(), writer, counts);
  });
}

}  // namespace

void combine(const Sources& sources, const Source* base, const float* coefficients, std::size_t rows,
             const Target& target, std::int64_t* counts) {
  expect_alike("combine", sources, base);
  const Plan plan{sources, base, coefficients, row_length("combine", sources[0].size, rows), target};
  std::fill(counts, counts + sources.size() + 2, 0);
  plan.is_stored() ? write_all<StoredSums>(plan, counts) : write_all<TileSums>(plan, counts);
}

void gram(const Sources& sources, const Source* base, std::size_t rows, double* products) {
  expect_alike("gram", sources, base);
  const std::size_t count = sources.size(), row = row_length("gram", sources[0].size, rows);
  const RowChunks chunks(sources[0].size, row);
  // Of every piece of a row, in order; a row that is not cut is a piece by itself.
  std::vector<double> sums(rows * chunks.pieces() * count * count, 0.0);
  over_strands(chunks.count(), [&](Claims& claims) {
    Tile tile(sources, base);
    std::vector<const void*> at(count);
    for (std::size_t chunk; claims.next(chunk);)
      over_tiles(chunks.at(chunk), tile.capacity(), row, [&](std::size_t begin, std::size_t n) {
        const std::size_t piece = begin / row * chunks.pieces() + begin % row / chunk_elements;
        double* const own = sums.data() + piece * count * count;
        if (count == 1 || count > 3 || !tile.is_stored()) {
          tile.read(begin, n);
          isa::loops().add_inner_products(tile.term(0), tile.stride(), count, n, own);
          return;
        }
        for (std::size_t k = 0; k < count; ++k) at[k] = sources[k].stored.at(begin);
        const isa::StoredSums stored{base == nullptr ? nullptr : base->stored.at(begin), at.data(), count, nullptr, n};
        isa::loops().add_stored_products[static_cast<int>(tile.terms_type())](stored, own);
      });
  });
  std::fill(products, products + rows * count * count, 0.0);
  for (std::size_t piece = 0; piece < rows * chunks.pieces(); ++piece)
    for (std::size_t k = 0; k < count; ++k)
      for (std::size_t l = 0; l < count; ++l)
        products[(piece / chunks.pieces() * count + k) * count + l] +=
            sums[(piece * count + std::min(k, l)) * count + std::max(k, l)];
}

}  // namespace minerua
