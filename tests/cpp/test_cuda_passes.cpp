// The CUDA passes over many tensors, run on the CPU by cuda_emulation.hpp, against the core: the same bits, whatever the order
// of threads; every mixture of element types, aligned and not, many tensors of odd sizes in one launch.
#include "cuda/launch.hpp"

#include <limits>
#include <optional>
#include <string>

#include "core/combine.hpp"
#include "core/masked.hpp"
#include "core/parallel.hpp"
#include "core/select.hpp"
#include "cuda/capi.cpp"
#include "cuda/passes.cu"

using minerua::DType;
using check::random_floats;

namespace {

constexpr std::size_t piece_elements = 2048 + 64;

/// Elements of any type, at an address that is a multiple of 16 bytes, or one element behind.
struct Stored {
  Stored(DType type, const std::vector<float>& values, bool shifted) : dtype(type), size(values.size()), first(shifted) {
    memory.resize(((size + first) * minerua::size_of(dtype) + 15) / 16);
    for (std::size_t i = 0; i < size; ++i) {
      if (dtype == DType::float32) static_cast<float*>(data())[i] = values[i];
      auto* const halves = static_cast<std::uint16_t*>(data());
      if (dtype == DType::float16) halves[i] = minerua::float16_from_float(values[i]);
      if (dtype == DType::bfloat16) halves[i] = minerua::bfloat16_from_float(values[i]);
    }
  }
  void* data() { return reinterpret_cast<char*>(memory.data()) + first * minerua::size_of(dtype); }
  bool operator==(const Stored& other) const {
    const std::size_t offset = first * minerua::size_of(dtype);
    return std::memcmp(reinterpret_cast<const char*>(memory.data()) + offset,
                       reinterpret_cast<const char*>(other.memory.data()) + offset, size * minerua::size_of(dtype)) == 0;
  }

  struct alignas(16) Block {
    char bytes[16] = {};
  };
  DType dtype;
  std::size_t size, first;
  std::vector<Block> memory;
};

/// Numbers with many ties and zeros among them, and a few that are not finite.
std::vector<float> crowded_floats(std::size_t size, unsigned seed) {
  std::vector<float> values = random_floats(size, seed);
  for (std::size_t i = 0; i < size; ++i) values[i] = i % 3 == 0 ? values[i] : std::round(values[i] * 4.0f) / 4.0f;
  if (size > 100) values[size / 2] = std::numeric_limits<float>::infinity(), values[7] = 3e38f;
  return values;
}

struct Case {
  std::size_t size, sources;
  bool has_base, is_shifted;
  DType out;
};

/// Several tensors, as the core and as the kernels want them.
struct Model {
  explicit Model(const std::vector<Case>& given) : cases(given) {
    for (const Case& one : cases) {
      const std::size_t first = stored.size(), count = one.sources + (one.has_base ? 1 : 0);
      for (std::size_t k = 0; k < count; ++k)
        stored.emplace_back(static_cast<DType>((k + one.size) % 3), crowded_floats(one.size, 100 * one.size + k),
                            one.is_shifted && k % 2 == 0);
      outs.emplace_back(one.out, std::vector<float>(one.size, 7.0f), one.is_shifted);
      minerua_tensor tensor{};
      tensor.size = static_cast<std::int64_t>(one.size), tensor.columns = 1, tensor.out = nullptr;
      tensor.first_source = static_cast<int>(first), tensor.source_count = static_cast<int>(one.sources);
      tensor.has_base = one.has_base, tensor.out_dtype = static_cast<int>(one.out);
      tensors.push_back(tensor);
      most = std::max(most, static_cast<int>(one.sources));
    }
    for (Stored& one : stored) sources.push_back({one.data(), nullptr, nullptr, 0, static_cast<int>(one.dtype)});
    for (std::size_t t = 0; t < cases.size(); ++t) tensors[t].out = outs[t].data();
    for (std::size_t t = 0; t < cases.size(); ++t) cut(cases[t].size, static_cast<int>(t), pieces);
  }

  static void cut(std::size_t size, int tensor, std::vector<minerua_piece>& pieces) {
    for (std::size_t begin = 0; begin < size; begin += piece_elements)
      pieces.push_back({static_cast<std::int64_t>(begin), 0,
                        static_cast<int>(std::min(piece_elements, size - begin)), tensor});
  }

  /// Sets where each tensor's results go, `extra` of them behind one for each source; returns how many there are.
  std::size_t place_results(int extra) {
    std::int64_t next = 0;
    for (minerua_tensor& tensor : tensors) tensor.first_result = next, next += tensor.source_count + extra;
    return static_cast<std::size_t>(next);
  }

  minerua_pass pass() const {
    return {sources.data(), tensors.data(), pieces.data(), static_cast<std::int64_t>(pieces.size()), most, 0};
  }

  minerua::Sources core_sources(std::size_t t) {
    minerua::Sources found;
    for (std::size_t k = 0; k < cases[t].sources; ++k) found.push_back(core_source(t, k));
    return found;
  }
  std::optional<minerua::Source> core_base(std::size_t t) {
    if (!cases[t].has_base) return std::nullopt;
    return core_source(t, cases[t].sources);
  }
  minerua::Source core_source(std::size_t t, std::size_t k) {
    Stored& own = stored[static_cast<std::size_t>(tensors[t].first_source) + k];
    minerua::Source source;
    source.stored = {own.data(), own.dtype, own.size};
    source.size = own.size;
    return source;
  }

  std::vector<Case> cases;
  std::vector<Stored> stored, outs;
  std::vector<minerua_source> sources;
  std::vector<minerua_tensor> tensors;
  std::vector<minerua_piece> pieces;
  int most = 0;
};

const minerua::Source* pointer(const std::optional<minerua::Source>& base) { return base ? &*base : nullptr; }

void expect_done(int status) { check::that(status == MINERUA_CUDA_OK, minerua_cuda_last_error()); }

std::vector<Case> mixed_cases() {
  std::vector<Case> cases;
  const std::size_t sizes[] = {1, 7, 8, 65, 2112, 2113, 5003};
  for (std::size_t sources = 1; sources <= 9; ++sources)
    cases.push_back({sizes[sources % 7], sources, sources % 3 != 0, sources % 2 == 0, static_cast<DType>(sources % 3)});
  cases.push_back({5003, 3, true, true, DType::float32});
  cases.push_back({4224, 2, false, false, DType::bfloat16});
  return cases;
}

std::string named(const char* pass, std::size_t t) { return std::string(pass) + ", tensor " + std::to_string(t); }

/// Takes infinities out: of differences, because infinity less infinity gives keys that differ between processors.
void make_finite(Model& model, bool everywhere) {
  for (std::size_t t = 0; t < model.cases.size(); ++t) {
    const Case& own = model.cases[t];
    if (own.size <= 100 || (!own.has_base && !everywhere)) continue;
    for (std::size_t k = 0; k < own.sources + own.has_base; ++k) {
      Stored& one = model.stored[static_cast<std::size_t>(model.tensors[t].first_source) + k];
      for (std::size_t i : {std::size_t{7}, one.size / 2})
        std::memset(static_cast<char*>(one.data()) + i * minerua::size_of(one.dtype), 0, minerua::size_of(one.dtype));
    }
  }
}

// ── combine, gram ────────────────────────────────────────────────────────────────────────────────────────────────────

void test_combine_has_the_bits_of_the_core() {
  Model model(mixed_cases());
  std::vector<std::int64_t> counts(model.place_results(2));
  const std::vector<float> coefficients = random_floats(64, 5);
  for (minerua_piece& piece : model.pieces) piece.at = piece.tensor;
  const minerua_pass pass = model.pass();
  expect_done(minerua_cuda_combine(&pass, coefficients.data(), counts.data(), nullptr));
  for (std::size_t t = 0; t < model.cases.size(); ++t) {
    const Case& own = model.cases[t];
    Stored expected(own.out, std::vector<float>(own.size, 9.0f), own.is_shifted);
    std::vector<std::int64_t> expected_counts(own.sources + 2);
    const minerua::Target target{own.out, own.size, expected.data()};
    const auto base = model.core_base(t);
    minerua::combine(model.core_sources(t), pointer(base), coefficients.data() + t, 1, target, expected_counts.data());
    check::that(model.outs[t] == expected, named("combine", t));
    check::that(std::equal(expected_counts.begin(), expected_counts.end(), counts.data() + model.tensors[t].first_result),
                named("combine counts what is not finite", t));
  }
}

void test_gram_is_the_core_s_to_rounding() {
  Model model({{5003, 3, true, false, DType::float32}, {177, 9, false, true, DType::float32}});
  make_finite(model, true);
  std::vector<minerua_sum> sums;
  std::int64_t next = 0, out = 0;
  for (minerua_piece& piece : model.pieces) {
    const std::int64_t width = model.tensors[static_cast<std::size_t>(piece.tensor)].source_count;
    if (piece.begin == 0) sums.push_back({next, 0, width * width, out}), out += width * width;
    ++sums.back().pieces;
    piece.at = next, next += width * width;
  }
  std::vector<double> partial(static_cast<std::size_t>(next), std::nan("")), products(static_cast<std::size_t>(out));
  const minerua_pass pass = model.pass();
  expect_done(minerua_cuda_gram(&pass, partial.data(), nullptr));
  const auto sum_count = static_cast<std::int64_t>(sums.size());
  expect_done(minerua_cuda_sum_pieces(sums.data(), sum_count, partial.data(), products.data(), nullptr));
  for (std::size_t t = 0; t < 2; ++t) {
    std::vector<double> expected(model.cases[t].sources * model.cases[t].sources);
    const auto base = model.core_base(t);
    minerua::gram(model.core_sources(t), pointer(base), 1, expected.data());
    for (std::size_t i = 0; i < expected.size(); ++i)
      check::that(std::fabs(expected[i] - products[static_cast<std::size_t>(sums[t].out) + i]) < 1e-8, named("gram", t));
  }
}

// ── the largest ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// The thresholds of all sources of all tensors, in order.
std::vector<minerua_selection> selected_by_kernels(Model& model, std::size_t divisor) {
  std::vector<minerua_selection> selections;
  const std::size_t rows = model.place_results(0);
  for (const Case& own : model.cases)
    for (std::size_t k = 0; k < own.sources; ++k)
      selections.push_back({static_cast<std::int64_t>((own.size * (k + 1) / divisor) % (own.size + 1)), 0, 0});
  const minerua_pass pass = model.pass();
  const auto count = static_cast<std::int64_t>(rows);
  std::vector<std::int64_t> upper(rows * minerua::cuda::upper_bins), lower(rows * minerua::cuda::lower_bins);
  expect_done(minerua_cuda_histogram(&pass, nullptr, upper.data(), nullptr));
  expect_done(minerua_cuda_narrow(selections.data(), count, upper.data(), 0, nullptr));
  expect_done(minerua_cuda_histogram(&pass, selections.data(), lower.data(), nullptr));
  expect_done(minerua_cuda_narrow(selections.data(), count, lower.data(), 1, nullptr));
  return selections;
}

void test_selection_is_exact() {
  for (std::size_t divisor : {1, 2, 9}) {
    Model model(mixed_cases());
    const std::vector<minerua_selection> found = selected_by_kernels(model, divisor);
    for (std::size_t t = 0; t < model.cases.size(); ++t) {
      const Case& own = model.cases[t];
      std::vector<std::uint64_t> counts;
      for (std::size_t k = 0; k < own.sources; ++k) counts.push_back((own.size * (k + 1) / divisor) % (own.size + 1));
      const auto base = model.core_base(t);
      const auto expected = minerua::select_largest(model.core_sources(t), pointer(base), counts);
      for (std::size_t k = 0; k < own.sources; ++k) {
        const minerua_selection& got = found[static_cast<std::size_t>(model.tensors[t].first_result) + k];
        // NaN, from infinity less infinity, is larger than everything here and there, but not the same NaN.
        const bool both_nan = got.key > 0x7f800000u && expected[k].key > 0x7f800000u && counts[k] > 0;
        check::that(both_nan || (got.key == expected[k].key && got.remaining == static_cast<std::int64_t>(expected[k].equal)),
                    named("select_largest", t) + ", source " + std::to_string(k));
      }
    }
  }
}

// ── masks ────────────────────────────────────────────────────────────────────────────────────────────────────────────

constexpr float scale = 0.75f;

minerua::isa::RandomStream stream_of(std::size_t k) {
  return {0x123456789abcdef0u + k, static_cast<std::uint32_t>(k), 0x80000000u};
}

/// Masks of every kind by turns: the largest with ties cut, less the very largest; drawn ones; everything.
std::vector<minerua::Mask> core_masks(Model& model, std::size_t t) {
  const Case& own = model.cases[t];
  const auto base = model.core_base(t);
  const auto sources = model.core_sources(t);
  const auto top = minerua::select_largest(sources, pointer(base), std::vector<std::uint64_t>(own.sources, own.size / 2));
  const auto but = minerua::select_largest(sources, pointer(base), std::vector<std::uint64_t>(own.sources, own.size / 9));
  std::vector<minerua::Mask> masks(own.sources);
  for (std::size_t k = 0; k < own.sources; ++k) {
    if (k % 4 == 0 || k % 4 == 2) masks[k].top = top[k], masks[k].but = but[k];
    if (k % 4 == 1 || k % 4 == 2) {
      masks[k].draws = true;
      masks[k].keep = 0.3f + 0.05f * static_cast<float>(k);
      masks[k].inverse = k % 8 == 1;
      masks[k].stream = stream_of(k);
    }
  }
  return masks;
}

struct KernelMasks {
  std::vector<minerua_mask> masks;
  std::vector<minerua_place> places;
  std::vector<minerua_piece> pieces;
};

void add_place(KernelMasks& found, const minerua::Threshold& limit, int tensor, std::size_t size, int k, int is_top) {
  if (limit.key > minerua::key_limit || limit.equal == 0 || limit.equal >= size) return;
  const auto first = static_cast<std::int64_t>(found.pieces.size());
  Model::cut(size, static_cast<int>(found.places.size()), found.pieces);
  const auto count = static_cast<int>(found.pieces.size()) - static_cast<int>(first);
  found.places.push_back({static_cast<std::int64_t>(limit.equal), first, count, tensor, k, limit.key, is_top, 0});
}

minerua_mask kernel_mask(const minerua::Mask& mask, std::size_t size) {
  const auto cut = [size](const minerua::Threshold& limit) {
    return static_cast<std::int64_t>(std::min<std::uint64_t>(limit.equal, size));
  };
  minerua_mask made{};
  made.top_cut = cut(mask.top), made.but_cut = cut(mask.but), made.top_key = mask.top.key, made.but_key = mask.but.key;
  made.seed = mask.stream.seed, made.model = mask.stream.model, made.tensor = mask.stream.tensor;
  made.probability = mask.draws ? mask.keep : 1.0f, made.draws = mask.draws, made.inverse = mask.inverse;
  if (mask.draws) made.limit = static_cast<std::uint32_t>(std::ldexp(static_cast<double>(mask.keep), 32));
  return made;
}

KernelMasks kernel_masks(Model& model) {
  KernelMasks found;
  for (std::size_t t = 0; t < model.cases.size(); ++t) {
    const Case& own = model.cases[t];
    const std::vector<minerua::Mask> masks = core_masks(model, t);
    for (std::size_t k = 0; k < own.sources; ++k) {
      found.masks.push_back(kernel_mask(masks[k], own.size));
      add_place(found, masks[k].top, static_cast<int>(t), own.size, static_cast<int>(k), 1);
      add_place(found, masks[k].but, static_cast<int>(t), own.size, static_cast<int>(k), 0);
    }
    if (own.has_base) found.masks.emplace_back();
  }
  minerua_pass pass = model.pass();
  pass.pieces = found.pieces.data(), pass.piece_count = static_cast<std::int64_t>(found.pieces.size());
  std::vector<std::int64_t> counts(found.pieces.size());
  expect_done(minerua_cuda_count_equal(&pass, found.places.data(), counts.data(), nullptr));
  expect_done(minerua_cuda_cut_ties(&pass, found.places.data(), static_cast<std::int64_t>(found.places.size()),
                                    counts.data(), found.masks.data(), nullptr));
  return found;
}

void check_merge_masked(int election) {
  Model model(mixed_cases());
  make_finite(model, false);
  std::vector<std::int64_t> counts(model.place_results(2));
  const KernelMasks masks = kernel_masks(model);
  std::vector<float> numbers;
  for (std::size_t t = 0; t < model.cases.size(); ++t) {
    model.tensors[t].first_number = static_cast<std::int64_t>(numbers.size());
    model.tensors[t].election = election;
    for (float number : random_floats(3 * model.cases[t].sources, 40)) numbers.push_back(number);
    numbers.push_back(scale);
  }
  const minerua_pass pass = model.pass();
  expect_done(minerua_cuda_merge_masked(&pass, masks.masks.data(), numbers.data(), counts.data(), nullptr));
  for (std::size_t t = 0; t < model.cases.size(); ++t) {
    const Case& own = model.cases[t];
    const float* const given = numbers.data() + model.tensors[t].first_number;
    Stored expected(own.out, std::vector<float>(own.size, 9.0f), own.is_shifted);
    std::vector<std::int64_t> expected_counts(own.sources + 2);
    const minerua::MaskedMerge how{given, election > 0 ? given + own.sources : nullptr,
                                   election > 1 ? given + 2 * own.sources : nullptr, scale};
    const auto base = model.core_base(t);
    const minerua::Target target{own.out, own.size, expected.data()};
    minerua::merge_masked(model.core_sources(t), pointer(base), core_masks(model, t), how, target, expected_counts.data());
    check::that(model.outs[t] == expected, named("merge_masked", t) + ", election " + std::to_string(election));
    check::that(std::equal(expected_counts.begin(), expected_counts.end(), counts.data() + model.tensors[t].first_result),
                named("merge_masked counts what is not finite", t));
  }
}

void test_merge_masked_has_the_bits_of_the_core() {
  for (int election : {MINERUA_ALL, MINERUA_SIGNS, MINERUA_SIGNS_AND_SHARES}) check_merge_masked(election);
}

void test_masked_sums_are_the_core_s_to_rounding() {
  Model model(mixed_cases());
  make_finite(model, true);
  const KernelMasks masks = kernel_masks(model);
  std::int64_t next = 0;
  for (minerua_piece& piece : model.pieces)
    piece.at = next, next += 2 * model.tensors[static_cast<std::size_t>(piece.tensor)].source_count;
  std::vector<double> partial(static_cast<std::size_t>(next), std::nan(""));
  const minerua_pass pass = model.pass();
  expect_done(minerua_cuda_masked_sums(&pass, masks.masks.data(), partial.data(), nullptr));
  for (std::size_t t = 0; t < model.cases.size(); ++t) {
    std::vector<double> expected(2 * model.cases[t].sources), got(expected.size());
    const auto base = model.core_base(t);
    minerua::masked_sums(model.core_sources(t), pointer(base), core_masks(model, t), expected.data());
    for (const minerua_piece& piece : model.pieces)
      for (std::size_t i = 0; static_cast<std::size_t>(piece.tensor) == t && i < got.size(); ++i)
        got[i] += partial[static_cast<std::size_t>(piece.at) + i];
    for (std::size_t i = 0; i < got.size(); ++i)
      check::that(std::fabs(got[i] - expected[i]) <= 1e-12 * expected[i], named("masked_sums", t));
  }
}

void test_what_cannot_be_taken_is_refused() {
  const minerua_pass none{};
  double partial = 0.0;
  check::that(minerua_cuda_gram(nullptr, &partial, nullptr) == MINERUA_CUDA_INVALID_ARGUMENT, "no pass is refused");
  check::that(std::string(minerua_cuda_last_error()) == "gram: a pointer is null", "a null pointer is named");
  check::that(minerua_cuda_gram(&none, &partial, nullptr) == MINERUA_CUDA_INVALID_ARGUMENT, "an empty pass is refused");
  check::that(std::string(minerua_cuda_last_error()) == "gram: 0 pieces of up to 0 sources", "its numbers are named");
}

}  // namespace

int main() {
  minerua::set_num_threads(1);
  for (unsigned seed : {0u, 1u, 2u}) {
    emulation::seed = seed;
    test_combine_has_the_bits_of_the_core();
    test_gram_is_the_core_s_to_rounding();
    test_selection_is_exact();
    test_merge_masked_has_the_bits_of_the_core();
    test_masked_sums_are_the_core_s_to_rounding();
  }
  test_what_cannot_be_taken_is_refused();
  return check::summary("cuda_passes");
}
