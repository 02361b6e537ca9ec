#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <system_error>
#include <vector>

#include "check.hpp"
#include "core/chunks.hpp"
#include "core/combine.hpp"
#include "core/error.hpp"
#include "core/masked.hpp"
#include "core/parallel.hpp"
#include "core/select.hpp"
#include "isa/loops.hpp"

using namespace minerua;
using check::random_floats;

namespace {

using Values = std::vector<float>;

Source source_of(const Values& values, std::size_t columns = 1) {
  Source source;
  source.stored = {values.data(), DType::float32, values.size()};
  source.size = values.size();
  source.columns = columns;
  return source;
}

/// Multiples of a half, so that many are equal.
Values stepped(std::size_t size, unsigned seed) {
  Values values = random_floats(size, seed);
  for (float& value : values) value = std::round(2.0f * value) / 2.0f;
  return values;
}

Target target_of(Values& out) { return {DType::float32, out.size(), out.data(), -1, 0}; }

std::uint32_t key_of(float value) { return bits_of_float(value) & key_limit; }

/// The definition: what is kept of the sums of two tensors less a base, by thresholds alone.
Values kept_sums(const Values& a, const Values& b, const Values& base, const Threshold& top_a, const Threshold& but_b) {
  Values out(a.size());
  std::uint64_t seen_a = 0, seen_b = 0;
  const auto is_largest = [](float value, const Threshold& threshold, std::uint64_t& seen) {
    return key_of(value) > threshold.key || (key_of(value) == threshold.key && seen++ < threshold.equal);
  };
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float x = a[i] - base[i], y = b[i] - base[i];
    const float part_a = is_largest(x, top_a, seen_a) ? x : 0.0f, part_b = is_largest(y, but_b, seen_b) ? 0.0f : y;
    out[i] = base[i] + (0.0f + part_a + part_b);
  }
  return out;
}

void test_masked_merges_with_many_ties_are_their_definition() {
  for (std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{17}, chunk_elements + 1, 4 * chunk_elements + 9})
    for (std::size_t threads : {1, 2, 5}) {
      set_num_threads(threads);
      const Values a = stepped(size, 1), b = stepped(size, 2), base = stepped(size, 3), factors{1.0f, 1.0f};
      const Source start = source_of(base);
      const Sources sources{source_of(a), source_of(b)};
      const std::vector<Threshold> found = select_largest(sources, &start, {size / 2, size / 3});
      std::vector<Mask> masks(2);
      masks[0].top = found[0];
      masks[1].but = found[1];
      Values out(size);
      std::vector<std::int64_t> counts(4);
      merge_masked(sources, &start, masks, {factors.data(), nullptr, nullptr, 1.0f}, target_of(out), counts.data());
      check::that(out == kept_sums(a, b, base, found[0], found[1]),
                  "masks of " + std::to_string(size) + " elements on " + std::to_string(threads) + " threads");
    }
}

void test_selection_is_exact(std::size_t size, const std::function<float(float)>& shape, const char* name) {
  Values values = random_floats(size, 5);
  for (float& value : values) value = shape(value);
  std::vector<std::uint32_t> keys(size);
  std::transform(values.begin(), values.end(), keys.begin(), key_of);
  std::sort(keys.rbegin(), keys.rend());
  for (std::uint64_t wanted : {std::uint64_t{1}, std::uint64_t{size / 5}, std::uint64_t{size / 2}, std::uint64_t{size}}) {
    const Threshold found = select_largest({source_of(values)}, nullptr, {wanted})[0];
    const auto above = static_cast<std::uint64_t>(
        std::lower_bound(keys.begin(), keys.end(), found.key, std::greater<>()) - keys.begin());
    check::that(found.key == keys[wanted - 1] && above + found.equal == wanted,
                std::string(name) + ": the " + std::to_string(wanted) + " largest of " + std::to_string(size));
  }
}

void test_selections_are_exact() {
  set_num_threads(3);
  for (std::size_t size : {std::size_t{1000}, (std::size_t{1} << 20) + 3}) {
    test_selection_is_exact(size, [](float x) { return x; }, "normal");
    test_selection_is_exact(size, [](float x) { return x < 0.3f ? 0.0f : x; }, "sparse");
    test_selection_is_exact(size, [](float x) { return std::exp(10.0f * x); }, "wide");
    test_selection_is_exact(size, [](float x) { return std::round(x); }, "equal");
  }
}

void test_random_words_are_those_of_the_authors() {
  struct Known {
    std::uint64_t counter;
    isa::RandomStream stream;
    std::uint32_t words[4];
  };
  // Random123, kat_vectors: philox4x32 10.
  const Known cases[] = {
      {0, {0, 0, 0}, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
      {~std::uint64_t{0},
       {~std::uint64_t{0}, 0xffffffffu, 0xffffffffu},
       {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
      {0x85a308d3243f6a88u,
       {0x299f31d0a4093822u, 0x03707344u, 0x13198a2eu},
       {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
  };
  for (const Known& known : cases) {
    std::vector<std::uint32_t> words(64);
    isa::loops().random_words(known.stream, known.counter / 16, 1, words.data());
    for (std::size_t w = 0; w < 4; ++w)
      check::that(words[16 * w + known.counter % 16] == known.words[w], "word " + std::to_string(w) + " of Philox");
  }
}

void test_factors_and_rows_are_read_in_place() {
  const std::size_t rows = 700, columns = 301, rank = 3;
  const Values stored = random_floats(rows * columns, 1), extra = random_floats(2 * columns, 2);
  const Values left = random_floats(rows * rank, 3), right = random_floats(rank * columns, 4);
  std::vector<std::int64_t> picked(rows);
  for (std::size_t i = 0; i < rows; ++i) picked[i] = static_cast<std::int64_t>((i * 7) % (rows + 2)) - 2;
  Source source = source_of(stored, columns);
  source.left = left.data(), source.right = right.data(), source.rank = rank;
  source.rows = picked.data(), source.extra = extra.data(), source.extra_rows = 2;
  Values loaded(source.size), expected(source.size);
  load(source, 0, source.size, loaded.data());
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) {
      const auto row = static_cast<std::size_t>(picked[i] >= 0 ? picked[i] : -1 - picked[i]);
      float sum = (picked[i] >= 0 ? stored : extra)[row * columns + j];
      for (std::size_t r = 0; r < rank; ++r) sum += left[i * rank + r] * right[r * columns + j];
      expected[i * columns + j] = sum;
    }
  check::that(loaded == expected, "factors and chosen rows");
  picked[5] = -3;
  check::throws<InvalidArgument>([&] { load(source, 0, 1, loaded.data()); }, "row 5 is taken from row -3", "a wrong row");
}

void test_threads_do_not_show() {
  const std::size_t size = 5 * chunk_elements + 100;
  const Values a = random_floats(size, 1), b = random_floats(size, 2);
  const Sources sources{source_of(a), source_of(b)};
  std::vector<Mask> masks(2);
  masks[0].draws = masks[1].draws = true;
  masks[0].keep = 0.5f, masks[1].keep = 0.25f;
  masks[1].spread = 0.2f, masks[1].columns = size / 4;
  std::vector<double> first;
  for (std::size_t threads : {1, 2, 7}) {
    set_num_threads(threads);
    std::vector<double> sums(4 + 4);
    masked_sums(sources, nullptr, masks, sums.data());
    gram(sources, nullptr, 1, sums.data() + 4);
    if (first.empty()) first = sums;
    check::that(sums == first, "sums on " + std::to_string(threads) + " threads");
  }
}

void test_files_are_written_or_the_system_says_why() {
  set_num_threads(2);
  const Values a = random_floats(3 * chunk_elements + 5, 1), one{1.0f};
  const Sources sources{source_of(a)};
  std::vector<std::int64_t> counts(3);
  std::FILE* const file = std::tmpfile();
  combine(sources, nullptr, one.data(), 1, {DType::float32, a.size(), nullptr, fileno(file), 8}, counts.data());
  Values back(a.size());
  const auto bytes = static_cast<ssize_t>(a.size() * sizeof(float));
  check::that(pread(fileno(file), back.data(), a.size() * sizeof(float), 8) == bytes && back == a, "a file holds the sums");
  std::fclose(file);
  try {
    combine(sources, nullptr, one.data(), 1, {DType::float32, a.size(), nullptr, 1 << 20, 0}, counts.data());
    check::that(false, "a descriptor that is not open: nothing was thrown");
  } catch (const std::system_error& error) {
    check::that(error.code().value() == EBADF, "a descriptor that is not open");
  }
}

void test_wrong_arguments_are_refused() {
  const Values a(4), b(5), one{1.0f, 1.0f};
  Values out(4);
  std::vector<std::int64_t> counts(4);
  const auto combined = [&](const Sources& sources, const Source* base, std::size_t rows) {
    combine(sources, base, one.data(), rows, target_of(out), counts.data());
  };
  const Source longer = source_of(b);
  check::throws<InvalidArgument>([&] { combined({}, nullptr, 1); }, "needs at least one source", "no source");
  check::throws<InvalidArgument>([&] { combined({source_of(a), longer}, nullptr, 1); }, "source 1 has 5", "sizes");
  check::throws<InvalidArgument>([&] { combined({source_of(a)}, &longer, 1); }, "the base has 5", "a longer base");
  check::throws<InvalidArgument>([&] { combined({source_of(a)}, nullptr, 3); }, "cannot be cut into 3 rows", "rows");
  check::throws<InvalidArgument>([&] { select_largest({longer}, nullptr, {6}); }, "the 6 largest of source 0", "count");
  check::throws<InvalidArgument>([&] { count_keys("keys", {longer}, nullptr, {{2, 1, 0}}); }, "keys 2 to 1", "a range");
  std::vector<double> sums(2);
  check::throws<InvalidArgument>([&] { masked_sums({longer}, nullptr, {}, sums.data()); }, "0 masks for 1", "masks");
  Mask ranked;
  ranked.draws = true, ranked.spread = 0.1f, ranked.columns = 2;
  check::throws<InvalidArgument>([&] { masked_sums({longer}, nullptr, {ranked}, sums.data()); }, "rows of 2", "rows");
}

}  // namespace

int main() {
  test_masked_merges_with_many_ties_are_their_definition();
  test_selections_are_exact();
  test_random_words_are_those_of_the_authors();
  test_factors_and_rows_are_read_in_place();
  test_threads_do_not_show();
  test_files_are_written_or_the_system_says_why();
  test_wrong_arguments_are_refused();
  set_num_threads(1);
  return check::summary("passes");
}
