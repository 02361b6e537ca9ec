#include "core/source.hpp"

#include <algorithm>

#include "core/chunks.hpp"
#include "core/error.hpp"

namespace minerua {
namespace {

/// Part of one row of the tensor: elements `first` to `first` + `count` of row `row`.
void read_row(const Source& source, std::size_t row, std::size_t first, std::size_t count, float* values) {
  const std::int64_t picked = source.rows == nullptr ? static_cast<std::int64_t>(row) : source.rows[row];
  if (picked >= 0) {
    const std::size_t begin = static_cast<std::size_t>(picked) * source.columns + first;
    isa::loops().read_values[static_cast<int>(source.stored.dtype)](source.stored.at(begin), values, count);
  } else {
    const float* const added = source.extra + static_cast<std::size_t>(-1 - picked) * source.columns + first;
    std::copy(added, added + count, values);
  }
  if (source.left != nullptr)
    isa::loops().add_products(values, source.left + row * source.rank, source.rank, source.right + first,
                              source.columns, count);
}

void read_rows(const Source& source, std::size_t begin, std::size_t count, float* values) {
  while (count > 0) {
    const std::size_t row = begin / source.columns, first = begin % source.columns;
    const std::size_t piece = std::min(count, source.columns - first);
    read_row(source, row, first, piece, values);
    begin += piece, values += piece, count -= piece;
  }
}

void expect_sound(const char* operation, const Source& source) {
  MINERUA_EXPECTS(source.columns > 0 && source.size % source.columns == 0,
                  operation << ": " << source.size << " elements are no whole number of rows of " << source.columns);
  const std::size_t rows = source.size / source.columns, stored_rows = source.stored.size / source.columns;
  MINERUA_EXPECTS(source.rows != nullptr || source.stored.size == source.size,
                  operation << ": " << source.stored.size << " elements are stored, the tensor has " << source.size);
  MINERUA_EXPECTS(source.stored.data != nullptr || source.stored.size == 0, operation << ": a source is a null pointer");
  MINERUA_EXPECTS((source.left == nullptr) == (source.right == nullptr),
                  operation << ": a source has one low-rank factor without the other");
  for (std::size_t i = 0; source.rows != nullptr && i < rows; ++i)
    MINERUA_EXPECTS(source.rows[i] < static_cast<std::int64_t>(stored_rows) &&
                        source.rows[i] >= -static_cast<std::int64_t>(source.extra_rows),
                    operation << ": row " << i << " is taken from row " << source.rows[i] << "; there are "
                              << stored_rows << " and " << source.extra_rows << " extra ones");
}

}  // namespace

bool are_stored(const Sources& sources, const Source* base) {
  const auto is_so = [&](const Source& source) {
    return source.is_plain() && source.stored.dtype == sources[0].stored.dtype;
  };
  return std::all_of(sources.begin(), sources.end(), is_so) && (base == nullptr || is_so(*base));
}

isa::Terms terms_of(const Source& source, const Source* base, std::size_t begin, std::size_t count) {
  return {source.stored.at(begin), base == nullptr ? nullptr : base->stored.at(begin), count};
}

std::size_t read_tile(const Source& source, std::size_t begin, std::size_t count, const float* base, float* terms) {
  const isa::Loops& loops = isa::loops();
  const auto dtype = static_cast<int>(source.stored.dtype), wide = static_cast<int>(DType::float32);
  if (source.is_plain()) return loops.read_terms_counted[dtype](source.stored.at(begin), base, terms, count);
  read_rows(source, begin, count, terms);
  const std::size_t not_finite = loops.count_not_finite[wide](terms, count);
  loops.read_terms[wide](terms, base, terms, count);
  return not_finite;
}

void load(const Source& source, std::size_t begin, std::size_t count, float* values) {
  expect_sound("load", source);
  MINERUA_EXPECTS(begin <= source.size && count <= source.size - begin,
                  "load: elements " << begin << " to " << begin + count << " of " << source.size);
  const std::size_t chunks = (count + chunk_elements - 1) / chunk_elements;
  over_strands(chunks, [&](Claims& claims) {
    for (std::size_t chunk; claims.next(chunk);) {
      const std::size_t first = chunk * chunk_elements;
      const std::size_t piece = std::min(chunk_elements, count - first);
      if (source.is_plain())
        isa::loops().read_values[static_cast<int>(source.stored.dtype)](source.stored.at(begin + first),
                                                                        values + first, piece);
      else
        read_rows(source, begin + first, piece, values + first);
    }
  });
}

void expect_alike(const char* operation, const Sources& sources, const Source* base) {
  MINERUA_EXPECTS(!sources.empty(), operation << ": needs at least one source");
  for (std::size_t k = 0; k < sources.size(); ++k) {
    MINERUA_EXPECTS(sources[k].size == sources[0].size, operation << ": source " << k << " has " << sources[k].size
                                                                  << " elements, source 0 has " << sources[0].size);
    expect_sound(operation, sources[k]);
  }
  if (base == nullptr) return;
  MINERUA_EXPECTS(base->size == sources[0].size, operation << ": the base has " << base->size
                                                           << " elements, the sources have " << sources[0].size);
  expect_sound(operation, *base);
}

}  // namespace minerua
