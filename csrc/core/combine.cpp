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

void add_counts(const Tile& tile, const Writer& writer, std::int64_t* counts) {
  for (std::size_t k = 0; k < tile.not_finite.size(); ++k) counts[k] += tile.not_finite[k];
  counts[tile.not_finite.size()] += writer.not_finite;
}

}  // namespace

void combine(const Sources& sources, const Source* base, const float* coefficients, std::size_t rows,
             const Target& target, std::int64_t* counts) {
  expect_alike("combine", sources, base);
  const std::size_t size = sources[0].size, count = sources.size();
  const std::size_t row = row_length("combine", size, rows);
  std::fill(counts, counts + count + 2, 0);
  std::mutex mutex;
  const RowChunks chunks(size, row);
  over_strands(chunks.count(), [&](Claims& claims) {
    Tile tile(sources, base);
    Writer writer(target);
    for (std::size_t chunk; claims.next(chunk);) {
      over_tiles(chunks.at(chunk), tile.capacity(), row, [&](std::size_t begin, std::size_t n) {
        tile.read(begin, n);
        const isa::Sums sums{tile.base(), tile.term(0), tile.stride(), count, coefficients + begin / row * count, 1, n};
        isa::loops().write_children[static_cast<int>(target.dtype)](sums, writer.place(n), n);
        writer.take(begin, n);
      });
      writer.finish();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    add_counts(tile, writer, counts);
  });
}

void gram(const Sources& sources, const Source* base, std::size_t rows, double* products) {
  expect_alike("gram", sources, base);
  const std::size_t count = sources.size(), row = row_length("gram", sources[0].size, rows);
  const RowChunks chunks(sources[0].size, row);
  // Of every piece of a row, in order; a row that is not cut is a piece by itself.
  std::vector<double> sums(rows * chunks.pieces() * count * count, 0.0);
  over_strands(chunks.count(), [&](Claims& claims) {
    Tile tile(sources, base);
    for (std::size_t chunk; claims.next(chunk);)
      over_tiles(chunks.at(chunk), tile.capacity(), row, [&](std::size_t begin, std::size_t n) {
        tile.read(begin, n);
        const std::size_t piece = begin / row * chunks.pieces() + begin % row / chunk_elements;
        isa::loops().add_inner_products(tile.term(0), tile.stride(), count, n, sums.data() + piece * count * count);
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
