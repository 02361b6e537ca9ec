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

/// The vectorised loops against the functions, for every half and every length of the tail.
void test_loops_equal_single_conversions() {
  std::uint16_t halves[64], back[64];
  float floats[64];
  for (std::uint32_t first = 0; first < 65536; first += 61) {
    const std::size_t count = 1 + first % 61;
    for (std::size_t i = 0; i < count; ++i) halves[i] = static_cast<std::uint16_t>(first + i);
    isa::loops().load[static_cast<int>(DType::float16)](halves, floats, count);
    isa::loops().store[static_cast<int>(DType::bfloat16)](floats, back, count);
    for (std::size_t i = 0; i < count; ++i) {
      check::that(bits_of_float(floats[i]) == bits_of_float(float_from_float16(halves[i])), "loop of float16 to float");
      check::that(back[i] == bfloat16_from_float(floats[i]), "loop of float to bfloat16");
    }
  }
}

}  // namespace

int main() {
  test_every_half_is_converted_exactly_and_comes_back();
  check_midpoints(float_from_float16, float16_from_float, 0x7bff, "float16");
  check_midpoints(float_from_bfloat16, bfloat16_from_float, 0x7f7f, "bfloat16");
  test_overflow_and_nan();
  test_loops_equal_single_conversions();
  return check::summary("dtype");
}
