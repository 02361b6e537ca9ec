#include "core/svd_mutation.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/chunks.hpp"
#include "core/dtype.hpp"
#include "core/error.hpp"
#include "isa/loops.hpp"

namespace minerua {
namespace {

enum class Outcome : unsigned char { done, matrix_not_finite, multiplier_not_finite, not_converged };

std::size_t rounded_up(std::size_t count, std::size_t step) { return (count + step - 1) / step * step; }

/// Rows start an odd number of cache lines apart, so that columns do not fall on one another in the cache.
std::size_t padded(std::size_t count, std::size_t line) {
  const std::size_t lines = (count + line - 1) / line;
  return line * (lines % 2 == 0 ? lines + 1 : lines);
}

const isa::SpectralLoops<float>& spectral_loops(float) { return isa::loops().in_single; }
const isa::SpectralLoops<double>& spectral_loops(double) { return isa::loops().in_double; }

/// A power of two as two factors that are both in range, whatever the exponent: exact for denormal numbers too.
template <class Real>
struct PowerOfTwo {
  explicit PowerOfTwo(int exponent)
      : first(std::ldexp(Real{1}, exponent / 2)), second(std::ldexp(Real{1}, exponent - exponent / 2)) {}

  Real times(Real value) const { return value * first * second; }

  Real first, second;
};

/// Memory that begins with a cache line, so that no vector lies across two: a fifth of the time, measured.
template <class Real>
struct LineAllocator {
  using value_type = Real;
  static constexpr std::align_val_t alignment{64};

  Real* allocate(std::size_t count) { return static_cast<Real*>(::operator new(count * sizeof(Real), alignment)); }
  void deallocate(Real* memory, std::size_t) { ::operator delete(memory, alignment); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};

template <class Real>
using Numbers = std::vector<Real, LineAllocator<Real>>;

/// Working memory for matrices of one shape, in tall form: `rows` >= `columns`, transposed where the input is wide. Padding
/// is zero and stays zero.
template <class Real>
class Workspace {
 public:
  Workspace(std::size_t m, std::size_t n)
      : wide_(m < n),
        rows_(std::max(m, n)),
        columns_(std::min(m, n)),
        stride_(padded(columns_, line)),
        tall_(rounded_up(rows_, 8) * stride_),
        product_(tall_.size()),
        gram_(rounded_up(columns_, 8) * stride_),
        vectors_(gram_.size()),
        scaled_(gram_.size()),
        eigenvalues_(stride_),
        scratch_(isa::eigen_scratch_rows * stride_),
        order_(columns_) {}

  bool fits(const SpectrumChange& change) const {
    return wide_ == (change.rows < change.columns) && rows_ == std::max(change.rows, change.columns) &&
           columns_ == std::min(change.rows, change.columns);
  }

  Outcome mutate(const SpectrumChange& change);

 private:
  static constexpr std::size_t line = 64 / sizeof(Real);

  void read_tall(const float* matrix, const PowerOfTwo<Real>& scale);
  void write_tall(const PowerOfTwo<Real>& scale, float* matrix) const;
  void scale_and_multiply(const float* multipliers);

  /// C = A B with B's rows and C's `stride` apart.
  void multiply(const Numbers<Real>& a, std::size_t a_row, std::size_t a_depth, const Numbers<Real>& b, Numbers<Real>& c,
                std::size_t rows, std::size_t depth, bool is_symmetric) const {
    spectral_loops(Real{}).multiply({a.data(), a_row, a_depth, b.data(), stride_, c.data(), stride_, rounded_up(rows, 8),
                                     rounded_up(columns_, line), depth, is_symmetric});
  }

  bool wide_;
  std::size_t rows_, columns_, stride_;
  Numbers<Real> tall_, product_, gram_, vectors_, scaled_, eigenvalues_, scratch_;
  std::vector<std::size_t> order_;
};

/// Copies the matrix into tall form, scaled.
template <class Real>
void Workspace<Real>::read_tall(const float* matrix, const PowerOfTwo<Real>& scale) {
  if (wide_) {
    for (std::size_t j = 0; j < columns_; ++j)
      for (std::size_t i = 0; i < rows_; ++i) tall_[i * stride_ + j] = scale.times(static_cast<Real>(matrix[j * rows_ + i]));
    return;
  }
  for (std::size_t i = 0; i < rows_; ++i) {
    const float* const from = matrix + i * columns_;
    Real* const to = tall_.data() + i * stride_;
    for (std::size_t j = 0; j < columns_; ++j) to[j] = scale.times(static_cast<Real>(from[j]));
  }
}

template <class Real>
void Workspace<Real>::write_tall(const PowerOfTwo<Real>& scale, float* matrix) const {
  if (wide_) {
    for (std::size_t j = 0; j < columns_; ++j)
      for (std::size_t i = 0; i < rows_; ++i)
        matrix[j * rows_ + i] = static_cast<float>(scale.times(product_[i * stride_ + j]));
    return;
  }
  for (std::size_t i = 0; i < rows_; ++i) {
    const Real* const from = product_.data() + i * stride_;
    float* const to = matrix + i * columns_;
    for (std::size_t j = 0; j < columns_; ++j) to[j] = static_cast<float>(scale.times(from[j]));
  }
}

/// product = tall · V diag(w) Vᵀ, eigenvectors in the rows of `vectors`; multiplier r belongs to the r-th largest eigenvalue.
template <class Real>
void Workspace<Real>::scale_and_multiply(const float* multipliers) {
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  std::stable_sort(order_.begin(), order_.end(),
                   [this](std::size_t a, std::size_t b) { return eigenvalues_[a] > eigenvalues_[b]; });
  for (std::size_t rank = 0; rank < columns_; ++rank) {
    const std::size_t row = order_[rank] * stride_;
    const Real factor = static_cast<Real>(multipliers[rank]);
    const Real* const from = vectors_.data() + row;
    Real* const to = scaled_.data() + row;
    for (std::size_t j = 0; j < stride_; ++j) to[j] = factor * from[j];
  }
  multiply(scaled_, 1, stride_, vectors_, gram_, columns_, columns_, true);
  multiply(tall_, stride_, 1, gram_, product_, rows_, columns_, false);
}

/// The largest magnitude; of anything that is not finite it makes infinity or NaN.
float largest_of(const float* values, std::size_t count) {
  std::int32_t largest = 0;  // magnitudes order as the bits below the sign do
  for (std::size_t i = 0; i < count; ++i)
    largest = std::max(largest, static_cast<std::int32_t>(bits_of_float(values[i]) & 0x7fffffffu));
  return float_from_bits(static_cast<std::uint32_t>(largest));
}

template <class Real>
Outcome Workspace<Real>::mutate(const SpectrumChange& change) {
  const std::size_t count = rows_ * columns_;
  const float largest = largest_of(change.matrix, count);
  if (!std::isfinite(largest)) return Outcome::matrix_not_finite;
  if (!std::isfinite(largest_of(change.multipliers, columns_))) return Outcome::multiplier_not_finite;
  if (!(largest > 0.0f)) {
    std::fill(change.out, change.out + count, 0.0f);
    return Outcome::done;
  }
  int exponent = 0;
  std::frexp(largest, &exponent);  // a power of two: exact, and the largest entry becomes [0.5, 1)
  read_tall(change.matrix, PowerOfTwo<Real>(-exponent));
  multiply(tall_, 1, stride_, tall_, gram_, columns_, rows_, true);
  if (!spectral_loops(Real{}).eigen(gram_.data(), columns_, stride_, eigenvalues_.data(), vectors_.data(), scratch_.data()))
    return Outcome::not_converged;
  scale_and_multiply(change.multipliers);
  write_tall(PowerOfTwo<Real>(exponent), change.out);
  return Outcome::done;
}

/// "3, 17 and 2 more" for the matrices with this outcome; empty if there is none.
std::string indices_of(const std::vector<Outcome>& outcomes, Outcome wanted) {
  constexpr std::size_t listed = 8;
  std::string text;
  std::size_t found = 0;
  for (std::size_t b = 0; b < outcomes.size(); ++b) {
    if (outcomes[b] != wanted) continue;
    if (++found <= listed) text += (found > 1 ? ", " : "") + std::to_string(b);
  }
  return found > listed ? text + " and " + std::to_string(found - listed) + " more" : text;
}

std::vector<std::size_t> unconverged_of(const std::vector<Outcome>& outcomes) {
  const std::string matrices = indices_of(outcomes, Outcome::matrix_not_finite);
  MINERUA_EXPECTS(matrices.empty(), "svd_mutation: NaN or infinity in matrix " << matrices);
  const std::string multipliers = indices_of(outcomes, Outcome::multiplier_not_finite);
  MINERUA_EXPECTS(multipliers.empty(), "svd_mutation: NaN or infinity in the multipliers of matrix " << multipliers);
  std::vector<std::size_t> unconverged;
  for (std::size_t b = 0; b < outcomes.size(); ++b)
    if (outcomes[b] == Outcome::not_converged) unconverged.push_back(b);
  return unconverged;
}

/// Runs of changes that one thread makes one after the other: neighbours of one shape until they are worth a task.
std::vector<std::size_t> task_starts(const std::vector<SpectrumChange>& changes, const std::vector<std::size_t>& order) {
  constexpr std::size_t worth = 65536;
  std::vector<std::size_t> starts;
  std::size_t elements = worth;
  for (std::size_t place = 0; place < order.size(); ++place) {
    const SpectrumChange& change = changes[order[place]];
    if (elements >= worth) starts.push_back(place), elements = 0;
    elements += change.rows * change.columns;
  }
  starts.push_back(order.size());
  return starts;
}

/// The largest first, so that none is left for the end; like shapes side by side.
std::vector<std::size_t> working_order(const std::vector<SpectrumChange>& changes) {
  const auto cost = [&changes](std::size_t i) {
    const std::size_t m = changes[i].rows, n = changes[i].columns;
    return std::pair(m * n * std::min(m, n), m);
  };
  std::vector<std::size_t> order(changes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return cost(a) > cost(b); });
  return order;
}

template <class Real>
std::vector<Outcome> mutate_all(const std::vector<SpectrumChange>& changes) {
  const std::vector<std::size_t> order = working_order(changes), starts = task_starts(changes, order);
  std::vector<Outcome> outcomes(changes.size(), Outcome::done);
  over_strands(starts.size() - 1, [&](Claims& claims) {
    std::optional<Workspace<Real>> work;
    for (std::size_t task; claims.next(task);)
      for (std::size_t place = starts[task]; place < starts[task + 1]; ++place) {
        const SpectrumChange& change = changes[order[place]];
        if (!work || !work->fits(change)) work.emplace(change.rows, change.columns);
        outcomes[order[place]] = work->mutate(change);
      }
  });
  return outcomes;
}

}  // namespace

std::vector<std::size_t> svd_mutation(const std::vector<SpectrumChange>& changes, GramPrecision precision) {
  for (std::size_t i = 0; i < changes.size(); ++i)
    MINERUA_EXPECTS(changes[i].rows > 0 && changes[i].columns > 0,
                    "svd_mutation: matrix " << i << " is " << changes[i].rows << " x " << changes[i].columns);
  return unconverged_of(precision == GramPrecision::single ? mutate_all<float>(changes) : mutate_all<double>(changes));
}

}  // namespace minerua
