// Conversions against slow, obvious definitions: over all 2^16 halves, and over floats around every rounding boundary.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "check.hpp"
#include "core/dtype.hpp"
#include "isa/loops.hpp"

using namespace minerua;

namespace {

/// float16 by its definition, in double arithmetic.
double value_of_float16(std::uint16_t half) {
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  const double sign = half & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

void test_every_half_is_converted_exactly_and_comes_back() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = float_from_float16(half);
    check::that(same(value, value_of_float16(half)), "float16 " + std::to_string(bits) + " to float");
    if (!std::isnan(value)) check::that(float16_from_float(value) == half, "float16 " + std::to_string(bits) + " comes back");
    const float wide = float_from_bfloat16(half);
    if (!std::isnan(wide)) check::that(bfloat16_from_float(wide) == half, "bfloat16 " + std::to_string(bits) + " comes back");
    if (std::isnan(wide)) check::that(std::isnan(float_from_bfloat16(bfloat16_from_float(wide))), "bfloat16 NaN stays");
    if (std::isnan(value)) check::that(std::isnan(float_from_float16(float16_from_float(value))), "float16 NaN stays");
  }
}

/// The midpoint between two neighbouring halves goes to the even one, its neighbours to the nearer.
template <class From, class To>
void check_midpoints(From from_half, To to_half, std::uint16_t largest, const std::string& name) {
  for (std::uint16_t half = 0; half < largest; ++half) {
    const auto next = static_cast<std::uint16_t>(half + 1);
    const auto middle = static_cast<float>((static_cast<double>(from_half(half)) + from_half(next)) / 2);
    const std::uint16_t even = half % 2 ? next : half;
    const std::string at = name + " above " + std::to_string(half);
    check::that(to_half(middle) == even, at + ": ties go to even");
    check::that(to_half(std::nextafterf(middle, 0.0f)) == half, at + ": below the middle goes down");
    check::that(to_half(std::nextafterf(middle, std::numeric_limits<float>::infinity())) == next, at + ": above the middle goes up");
    check::that(to_half(-middle) == (even | 0x8000), at + ": signs are symmetric");
  }
}

void test_overflow_and_nan() {
  const float infinity = std::numeric_limits<float>::infinity();
  check::that(float16_from_float(65519.996f) == 0x7bff, "65519.996 is the largest float16");
  check::that(float16_from_float(65520.0f) == 0x7c00, "65520 is infinite in float16");
  check::that(float16_from_float(-infinity) == 0xfc00, "minus infinity stays, float16");
  check::that(bfloat16_from_float(std::numeric_limits<float>::max()) == 0x7f80, "the largest float overflows bfloat16");
  check::that(bfloat16_from_float(-infinity) == 0xff80, "minus infinity stays, bfloat16");
  const float nan = float_from_bits(0x7f800001u);  // its payload lies below what the halves keep
  check::that(std::isnan(float_from_float16(float16_from_float(nan))), "a low payload stays a NaN, float16");
  check::that(std::isnan(float_from_bfloat16(bfloat16_from_float(nan))), "a low payload stays a NaN, bfloat16");
}

bool same_bits_or_nan(float a, float b) { return bits_of_float(a) == bits_of_float(b) || (std::isnan(a) && std::isnan(b)); }

/// Stores one child, `floats` times one, through the loop; what lies behind its end must not change.
void check_stores(const float* floats, std::size_t count) {
  const float one = 1.0f;
  std::uint16_t halves[65], brains[65];
  halves[count] = brains[count] = 0xabcd;
  const isa::Sums given{nullptr, floats, 64, 1, &one, 1, count};
  isa::loops().write_children[static_cast<int>(DType::float16)](given, halves, 0);
  isa::loops().write_children[static_cast<int>(DType::bfloat16)](given, brains, 0);
  for (std::size_t i = 0; i < count; ++i) {
    check::that(halves[i] == float16_from_float(floats[i] * one), "loop of float to float16");
    check::that(brains[i] == bfloat16_from_float(floats[i] * one), "loop of float to bfloat16");
  }
  check::that(halves[count] == 0xabcd && brains[count] == 0xabcd, "nothing is written behind the end");
}

/// The vectorised loops against the functions, for every half and every length of the tail.
void test_loops_equal_single_conversions() {
  std::uint16_t halves[64];
  float floats[64];
  for (std::uint32_t first = 0; first < 65536; first += 61) {
    const std::size_t count = 1 + first % 61;
    for (std::size_t i = 0; i < count; ++i) halves[i] = static_cast<std::uint16_t>(first + i);
    for (bool is_half : {true, false}) {
      const DType dtype = is_half ? DType::float16 : DType::bfloat16;
      isa::loops().read_terms[static_cast<int>(dtype)](halves, nullptr, floats, count);
      for (std::size_t i = 0; i < count; ++i) {
        const float expected = is_half ? float_from_float16(halves[i]) : float_from_bfloat16(halves[i]);
        check::that(same_bits_or_nan(floats[i], expected), "loop of 16 bits to float");
      }
      check_stores(floats, count);
    }
  }
}

/// Floats of every exponent, with bits around every rounding boundary of both types.
void test_loops_round_like_the_functions() {
  std::uint32_t state = 1;
  float floats[64];
  for (int round = 0; round < 4000; ++round) {
    for (float& value : floats) {
      state = state * 1664525u + 1013904223u;
      const std::uint32_t tails[] = {0u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, state >> 16};
      value = float_from_bits((state & 0xffff0000u) | tails[state >> 7 & 7u]);
    }
    check_stores(floats, 64 - static_cast<std::size_t>(round % 16));
  }
}

}  // namespace

int main() {
  test_every_half_is_converted_exactly_and_comes_back();
  check_midpoints(float_from_float16, float16_from_float, 0x7bff, "float16");
  check_midpoints(float_from_bfloat16, bfloat16_from_float, 0x7f7f, "bfloat16");
  test_overflow_and_nan();
  test_loops_equal_single_conversions();
  test_loops_round_like_the_functions();
  return check::summary("dtype");
}
