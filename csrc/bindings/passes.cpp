// Passes over tensors: unpack, release the lock, call. Sources, masks and targets come as tuples, which minerua.kernels makes.
#include "bindings/passes.hpp"

#include <pybind11/stl.h>

#include <cerrno>
#include <deque>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>
#include <vector>

#include "bindings/buffers.hpp"
#include "core/combine.hpp"
#include "core/error.hpp"
#include "core/masked.hpp"
#include "core/select.hpp"
#include "core/source.hpp"
#include "core/target.hpp"

namespace minerua::bindings {
namespace {

using OptionalBuffer = std::optional<py::buffer>;

/// array, its dtype, columns, left, right, rows, extra.
using SourceTuple =
    std::tuple<py::buffer, std::string, std::size_t, OptionalBuffer, OptionalBuffer, OptionalBuffer, OptionalBuffer>;

/// dtype, array (or file and offset).
using TargetTuple = std::tuple<std::string, OptionalBuffer, int, std::int64_t>;

/// Key and how many of that key.
using ThresholdTuple = std::tuple<std::uint32_t, std::uint64_t>;

/// top, but, keep, spread, columns, inverse, model, tensor, seed, address of what was drawn before (or 0).
using MaskTuple = std::tuple<std::optional<ThresholdTuple>, std::optional<ThresholdTuple>, std::optional<float>, float,
                             std::size_t, bool, std::uint32_t, std::uint32_t, std::uint64_t, std::uintptr_t>;

Threshold threshold_of(const std::optional<ThresholdTuple>& given, const Threshold& otherwise) {
  return given ? Threshold{std::get<0>(*given), std::get<1>(*given)} : otherwise;
}

std::vector<Mask> masks_of(const std::vector<MaskTuple>& given) {
  std::vector<Mask> masks;
  for (const auto& [top, but, keep, spread, columns, inverse, model, tensor, seed, drawn] : given) {
    Mask mask;
    mask.top = threshold_of(top, mask.top);
    mask.but = threshold_of(but, mask.but);
    mask.draws = keep.has_value();
    mask.keep = keep.value_or(1.0f);
    mask.spread = spread;
    mask.columns = columns;
    mask.inverse = inverse;
    mask.stream = {seed, model, tensor};
    mask.drawn = reinterpret_cast<const std::uint64_t*>(drawn);
    masks.push_back(mask);
  }
  return masks;
}

/// Unpacks tuples, and keeps every buffer exported until the call is over.
class Unpacked {
 public:
  Source source(const SourceTuple& given) {
    const auto& [array, dtype, columns, left, right, rows, extra] = given;
    const py::buffer_info& stored = keep(contiguous(array, size_of(dtype_named(dtype)), false));
    Source source;
    source.stored = {stored.ptr, dtype_named(dtype), static_cast<std::size_t>(stored.size)};
    source.columns = columns;
    source.size = source.stored.size;
    if (rows) {
      const py::buffer_info& picked = keep(contiguous(*rows, sizeof(std::int64_t), false));
      source.rows = static_cast<const std::int64_t*>(picked.ptr);
      source.size = static_cast<std::size_t>(picked.size) * columns;
    }
    if (left && right) set_factors(source, keep(floats(*left, 2, false)), keep(floats(*right, 2, false)));
    if (extra) {
      const py::buffer_info& added = keep(floats(*extra, 2, false));
      expect_shape(added, static_cast<std::size_t>(added.shape[0]), columns, "extra rows");
      source.extra = static_cast<const float*>(added.ptr);
      source.extra_rows = static_cast<std::size_t>(added.shape[0]);
    }
    return source;
  }

  Sources sources(const std::vector<SourceTuple>& given) {
    Sources all;
    for (const SourceTuple& one : given) all.push_back(source(one));
    return all;
  }

  std::optional<Source> base(const std::optional<SourceTuple>& given) {
    return given ? std::optional(source(*given)) : std::nullopt;
  }

  Target target(const TargetTuple& given, const Sources& sources) {
    const auto& [dtype, array, file, offset] = given;
    Target target;
    target.dtype = dtype_named(dtype);
    target.size = sources.empty() ? 0 : sources[0].size;
    target.file = file;
    target.offset = offset;
    if (!array) return target;
    const py::buffer_info& memory = keep(contiguous(*array, size_of(target.dtype), true));
    MINERUA_EXPECTS(static_cast<std::size_t>(memory.size) == target.size,
                    "the target has " << memory.size << " elements, the sources have " << target.size);
    // An array without elements may have no address; a target without an address would be a file.
    target.memory = memory.ptr != nullptr ? memory.ptr : this;
    return target;
  }

  const py::buffer_info& keep(py::buffer_info&& taken) { return held_.emplace_back(std::move(taken)); }

 private:
  static void expect_shape(const py::buffer_info& taken, std::size_t rows, std::size_t columns, const char* what) {
    MINERUA_EXPECTS(static_cast<std::size_t>(taken.shape[0]) == rows && static_cast<std::size_t>(taken.shape[1]) == columns,
                    what << " have shape (" << taken.shape[0] << ", " << taken.shape[1] << "), must have (" << rows
                         << ", " << columns << ")");
  }

  static void set_factors(Source& source, const py::buffer_info& left, const py::buffer_info& right) {
    source.rank = static_cast<std::size_t>(right.shape[0]);
    expect_shape(left, source.columns > 0 ? source.size / source.columns : 0, source.rank, "left factors");
    expect_shape(right, source.rank, source.columns, "right factors");
    source.left = static_cast<const float*>(left.ptr);
    source.right = static_cast<const float*>(right.ptr);
  }

  std::deque<py::buffer_info> held_;  // a deque: references to its items stay valid
};

const Source* pointer(const std::optional<Source>& base) { return base ? &*base : nullptr; }

void load_values(const SourceTuple& given, std::size_t begin, const py::buffer& out) {
  Unpacked unpacked;
  const Source source = unpacked.source(given);
  const py::buffer_info& values = unpacked.keep(floats(out, 1, true));
  const py::gil_scoped_release unlocked;
  load(source, begin, static_cast<std::size_t>(values.size), static_cast<float*>(values.ptr));
}

std::vector<std::int64_t> combine_sources(const std::vector<SourceTuple>& given, const std::optional<SourceTuple>& base,
                                          const py::buffer& coefficients, const TargetTuple& target) {
  Unpacked unpacked;
  const Sources sources = unpacked.sources(given);
  const std::optional<Source> start = unpacked.base(base);
  const py::buffer_info& weights = unpacked.keep(floats(coefficients, 2, false));
  MINERUA_EXPECTS(static_cast<std::size_t>(weights.shape[1]) == sources.size(),
                  "combine: " << weights.shape[1] << " coefficients for " << sources.size() << " sources");
  const Target place = unpacked.target(target, sources);
  std::vector<std::int64_t> counts(sources.size() + 2);
  const py::gil_scoped_release unlocked;
  combine(sources, pointer(start), static_cast<const float*>(weights.ptr), static_cast<std::size_t>(weights.shape[0]),
          place, counts.data());
  return counts;
}

void gram_of(const std::vector<SourceTuple>& given, const std::optional<SourceTuple>& base, const py::buffer& out) {
  Unpacked unpacked;
  const Sources sources = unpacked.sources(given);
  const std::optional<Source> start = unpacked.base(base);
  const py::buffer_info& products = unpacked.keep(contiguous(out, sizeof(double), true));
  const auto rows = static_cast<std::size_t>(products.shape[0]);
  MINERUA_EXPECTS(static_cast<std::size_t>(products.size) == rows * sources.size() * sources.size(),
                  "gram: " << products.size << " products for " << rows << " rows of " << sources.size() << " sources");
  const py::gil_scoped_release unlocked;
  gram(sources, pointer(start), rows, static_cast<double*>(products.ptr));
}

py::buffer_info& counts_buffer(py::buffer_info& taken, std::size_t sources, std::size_t bins) {
  MINERUA_EXPECTS(taken.ndim == 2 && static_cast<std::size_t>(taken.shape[0]) == sources &&
                      static_cast<std::size_t>(taken.shape[1]) == bins,
                  "counts must have shape (" << sources << ", " << bins << ")");
  return taken;
}

void count_keys_of(const std::vector<SourceTuple>& given, const std::optional<SourceTuple>& base,
                   const std::vector<std::uint32_t>& lows, const std::vector<std::uint32_t>& highs, unsigned shift,
                   const py::buffer& out) {
  Unpacked unpacked;
  const Sources sources = unpacked.sources(given);
  const std::optional<Source> start = unpacked.base(base);
  MINERUA_EXPECTS(lows.size() == sources.size() && highs.size() == sources.size() && shift < 31,
                  "count_keys: needs a range for each source");
  std::vector<KeyRange> ranges;
  for (std::size_t k = 0; k < sources.size(); ++k) ranges.push_back({lows[k], highs[k], shift});
  py::buffer_info taken = contiguous(out, sizeof(std::int64_t), true);
  auto* counts = static_cast<std::int64_t*>(
      counts_buffer(taken, sources.size(), ranges.empty() ? 0 : ranges[0].bins()).ptr);
  const py::gil_scoped_release unlocked;
  for (const KeyHistogram& histogram : count_keys("count_keys", sources, pointer(start), ranges))
    counts = std::copy(histogram.bins.begin(), histogram.bins.end(), counts);
}

std::vector<ThresholdTuple> select_largest_of(const std::vector<SourceTuple>& given,
                                              const std::optional<SourceTuple>& base,
                                              const std::vector<std::uint64_t>& counts) {
  Unpacked unpacked;
  const Sources sources = unpacked.sources(given);
  const std::optional<Source> start = unpacked.base(base);
  std::vector<ThresholdTuple> found;
  const py::gil_scoped_release unlocked;
  for (const Threshold& threshold : select_largest(sources, pointer(start), counts))
    found.emplace_back(threshold.key, threshold.equal);
  return found;
}

void draw_mask(const MaskTuple& given, std::size_t size, const py::buffer& out) {
  const std::vector<Mask> masks = masks_of({given});
  const py::buffer_info bits = contiguous(out, sizeof(std::uint64_t), true);
  MINERUA_EXPECTS(static_cast<std::size_t>(bits.size) == size / 64 + 2,
                  "draw: " << bits.size << " numbers of bits for " << size << " elements");
  const py::gil_scoped_release unlocked;
  draw(masks[0], size, static_cast<std::uint64_t*>(bits.ptr));
}

void draw_uniform_numbers(std::uint64_t seed, std::uint32_t model, std::uint32_t tensor, const py::buffer& out) {
  const py::buffer_info numbers = floats(out, 1, true);
  const py::gil_scoped_release unlocked;
  draw_uniform({seed, model, tensor}, static_cast<std::size_t>(numbers.size), static_cast<float*>(numbers.ptr));
}

void masked_sums_of(const std::vector<SourceTuple>& given, const std::optional<SourceTuple>& base,
                    const std::vector<MaskTuple>& masks, const py::buffer& out) {
  Unpacked unpacked;
  const Sources sources = unpacked.sources(given);
  const std::optional<Source> start = unpacked.base(base);
  const std::vector<Mask> taken = masks_of(masks);
  const py::buffer_info& sums = unpacked.keep(contiguous(out, sizeof(double), true));
  MINERUA_EXPECTS(static_cast<std::size_t>(sums.size) == 2 * sources.size(), "masked_sums: sums must have shape (K, 2)");
  const py::gil_scoped_release unlocked;
  masked_sums(sources, pointer(start), taken, static_cast<double*>(sums.ptr));
}

/// Borrows: takes a lasting optional only, no temporary made from a vector.
const float* numbers(const std::optional<std::vector<float>>& given, std::size_t count, const char* name) {
  if (!given) return nullptr;
  MINERUA_EXPECTS(given->size() == count,
                  "merge_masked: " << given->size() << " " << name << " for " << count << " sources");
  return given->data();
}

std::vector<std::int64_t> merge_masked_of(const std::vector<SourceTuple>& given, const std::optional<SourceTuple>& base,
                                          const std::vector<MaskTuple>& masks, const std::vector<float>& factors,
                                          const std::optional<std::vector<float>>& votes,
                                          const std::optional<std::vector<float>>& shares, float scale,
                                          const TargetTuple& target) {
  Unpacked unpacked;
  const Sources sources = unpacked.sources(given);
  const std::optional<Source> start = unpacked.base(base);
  const std::vector<Mask> taken = masks_of(masks);
  const std::size_t count = sources.size();
  MINERUA_EXPECTS(factors.size() == count, "merge_masked: " << factors.size() << " factors for " << count << " sources");
  const MaskedMerge how{factors.data(), numbers(votes, count, "votes"), numbers(shares, count, "shares"), scale};
  const Target place = unpacked.target(target, sources);
  std::vector<std::int64_t> counts(count + 2);
  const py::gil_scoped_release unlocked;
  merge_masked(sources, pointer(start), taken, how, place, counts.data());
  return counts;
}

void translate_system_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
  }
}

}  // namespace

void define_passes(py::module_& module) {
  py::register_exception_translator(&translate_system_error);
  module.def("load", &load_values, py::arg("source"), py::arg("begin"), py::arg("out"),
             "Fills `out` with a source's elements from `begin` on.");
  module.def("combine", &combine_sources, py::arg("sources"), py::arg("base"), py::arg("coefficients"),
             py::arg("target"), "Writes weighted sums; returns counts of what is not finite.");
  module.def("gram", &gram_of, py::arg("sources"), py::arg("base"), py::arg("out"),
             "Fills `out`, float64, with inner products.");
  module.def("count_keys", &count_keys_of, py::arg("sources"), py::arg("base"), py::arg("lows"), py::arg("highs"),
             py::arg("shift"), py::arg("out"), "Fills `out`, int64, with the bins of magnitudes from lows to highs.");
  module.def("select_largest", &select_largest_of, py::arg("sources"), py::arg("base"), py::arg("counts"),
             "Returns a threshold for each source.");
  module.def("draw", &draw_mask, py::arg("mask"), py::arg("size"), py::arg("out"),
             "Fills `out`, uint64, with a bit for each element: whether a mask draws it.");
  module.def("uniform", &draw_uniform_numbers, py::arg("seed"), py::arg("model"), py::arg("tensor"), py::arg("out"),
             "Fills `out` with random numbers in [0, 1).");
  module.def("masked_sums", &masked_sums_of, py::arg("sources"), py::arg("base"), py::arg("masks"), py::arg("out"),
             "Fills `out`, float64, with sums of magnitudes before and after the masks.");
  module.def("merge_masked", &merge_masked_of, py::arg("sources"), py::arg("base"), py::arg("masks"),
             py::arg("factors"), py::arg("votes"), py::arg("shares"), py::arg("scale"), py::arg("target"),
             "Writes a merge of what masks keep; returns counts of what is not finite.");
}

}  // namespace minerua::bindings
