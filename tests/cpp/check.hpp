/// @file check.hpp
/// All that these tests need of a framework: a check that reports and counts, a summary for the exit status, and numbers.
#pragma once

#include <cstddef>
#include <cstdio>
#include <exception>
#include <random>
#include <string>
#include <vector>

namespace check {

inline int failures = 0;

inline void that(bool holds, const std::string& sentence) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", sentence.c_str());
}

/// Runs `body` and checks that it throws `Expected` with `part` in its text.
template <class Expected, class Body>
void throws(const Body& body, const std::string& part, const std::string& sentence) {
  try {
    body();
  } catch (const Expected& error) {
    that(std::string(error.what()).find(part) != std::string::npos, sentence + ": the text was: " + error.what());
    return;
  }
  that(false, sentence + ": nothing was thrown");
}

/// Draws normally distributed numbers; the same seed gives the same.
inline std::vector<float> random_floats(std::size_t count, unsigned seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = scale * normal(generator);
  return values;
}

inline int summary(const char* name) {
  std::printf("%s: %d failures\n", name, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check
