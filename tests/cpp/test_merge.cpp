#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/error.hpp"
#include "core/merge.hpp"
#include "core/parallel.hpp"

using namespace minerua;
using check::random_floats;

namespace {

/// The definition, element by element.
std::vector<float> merged(const std::vector<std::vector<float>>& experts, const std::vector<float>& base,
                          const std::vector<float>& coefficients, std::size_t children) {
  const std::size_t size = experts[0].size();
  std::vector<float> out(children * size);
  for (std::size_t p = 0; p < children; ++p)
    for (std::size_t i = 0; i < size; ++i) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < experts.size(); ++k) {
        const float term = base.empty() ? experts[k][i] : experts[k][i] - base[i];
        const float product = coefficients[p * experts.size() + k] * term;
        sum = k > 0 ? sum + product : base.empty() ? product : base[i] + product;
      }
      out[p * size + i] = sum;
    }
  return out;
}

ConstTensorView view(const std::vector<float>& values) { return {values.data(), DType::float32, values.size()}; }

void check_shape(std::size_t size, std::size_t count, std::size_t children, bool has_base) {
  std::vector<std::vector<float>> experts;
  std::vector<ConstTensorView> views;
  for (std::size_t k = 0; k < count; ++k) experts.push_back(random_floats(size, 10 + static_cast<unsigned>(k)));
  for (const auto& expert : experts) views.push_back(view(expert));
  const std::vector<float> base = has_base ? random_floats(size, 1) : std::vector<float>{};
  const std::vector<float> coefficients = random_floats(count * children, 2);
  const std::vector<float> expected = merged(experts, base, coefficients, children);
  for (std::size_t threads : {1, 3}) {
    set_num_threads(threads);
    std::vector<float> out(children * size, -1.0f);
    merge(views, has_base ? std::optional(view(base)) : std::nullopt, coefficients.data(), children,
          {out.data(), DType::float32, out.size()});
    check::that(out.empty() || std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0,
                std::to_string(children) + " children of " + std::to_string(count) + " experts, " +
                    std::to_string(size) + " elements, base " + std::to_string(has_base));
  }
}

void test_merge_is_its_definition_bit_for_bit() {
  for (std::size_t size : {0, 1, 31, 32, 33, 1000, 32768, 70001})
    for (std::size_t count : {1, 2, 5, 70})
      if (size < 70000 || count < 70)
        for (bool has_base : {false, true}) check_shape(size, count, size < 70000 ? 15 : 3, has_base);
}

void test_wrong_arguments_are_refused() {
  const std::vector<float> a(4), b(5), one{1.0f, 1.0f}, nan{1.0f, std::numeric_limits<float>::quiet_NaN()};
  std::vector<float> out(4);
  const TensorView target{out.data(), DType::float32, 4};
  using Views = std::vector<ConstTensorView>;
  const auto refused = [&target](const Views& experts, const std::optional<ConstTensorView>& base,
                                 const std::vector<float>& coefficients, std::size_t children, const char* part) {
    check::throws<InvalidArgument>([&] { merge(experts, base, coefficients.data(), children, target); }, part, part);
  };
  refused({}, std::nullopt, one, 1, "at least one expert");
  refused({view(a)}, std::nullopt, one, 0, "at least one child");
  refused({view(a), view(b)}, std::nullopt, one, 1, "expert 1 has 5 elements");
  refused({view(a)}, view(b), one, 1, "base has 5 elements, the experts 4");
  refused({view(a)}, std::nullopt, one, 2, "2 children of 4 need 8");
  refused({view(a), view(a)}, std::nullopt, nan, 1, "coefficient (0, 1) is nan");
  refused({{nullptr, DType::float32, 4}}, std::nullopt, one, 1, "expert 0 is a null pointer");
}

}  // namespace

int main() {
  test_merge_is_its_definition_bit_for_bit();
  test_wrong_arguments_are_refused();
  set_num_threads(1);
  return check::summary("merge");
}
