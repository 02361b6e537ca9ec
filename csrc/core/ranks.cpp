#include "core/ranks.hpp"

#include <algorithm>
#include <array>

#include "core/dtype.hpp"
#include "core/select.hpp"

namespace minerua {
namespace {

/// Items below which comparing them costs less than counting digits.
constexpr std::size_t few = 1024;

constexpr unsigned digit_bits = 11, digits = 3, first_bit = 32;
constexpr std::size_t buckets = std::size_t{1} << digit_bits;

std::size_t digit_of(std::uint64_t item, unsigned digit) {
  return (item >> (first_bit + digit * digit_bits)) & (buckets - 1);
}

/// Sorts items by their upper halves, keeping the order of equal ones; digit by digit, the lowest first.
void sort_by_upper_half(std::vector<std::uint64_t>& items, std::vector<std::uint64_t>& spare) {
  std::array<std::array<std::uint32_t, buckets>, digits> counts{};
  for (const std::uint64_t item : items)
    for (unsigned digit = 0; digit < digits; ++digit) ++counts[digit][digit_of(item, digit)];
  spare.resize(items.size());
  for (unsigned digit = 0; digit < digits; ++digit) {
    std::array<std::uint32_t, buckets>& places = counts[digit];
    if (places[digit_of(items[0], digit)] == items.size()) continue;  // one bucket holds all
    std::uint32_t place = 0;
    for (std::uint32_t& count : places) {
      const std::uint32_t before = place;
      place += count;
      count = before;
    }
    for (const std::uint64_t item : items) spare[places[digit_of(item, digit)]++] = item;
    items.swap(spare);
  }
}

}  // namespace

void replace_by_probabilities(float* row, std::size_t count, float keep, float spread, std::vector<std::uint64_t>& order,
                              std::vector<std::uint64_t>& spare) {
  order.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t below_largest = key_limit - (bits_of_float(row[i]) & key_limit);
    order[i] = (std::uint64_t{below_largest} << first_bit) | i;
  }
  if (count < few)
    std::sort(order.begin(), order.end());
  else
    sort_by_upper_half(order, spare);
  const float lowest = keep - spread, width = 2.0f * spread, last = static_cast<float>(count - 1);
  for (std::size_t place = 0; place < count; ++place) {
    const float share = static_cast<float>(static_cast<std::int64_t>(count - 1 - place)) / last;
    row[order[place] & 0xffffffffu] = lowest + share * width;
  }
}

}  // namespace minerua
