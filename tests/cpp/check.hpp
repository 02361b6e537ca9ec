/// @file check.hpp
/// All that these tests need of a framework: a check that reports and counts, and a summary for the exit status.
#pragma once

#include <cstdio>
#include <exception>
#include <string>

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

inline int summary(const char* name) {
  std::printf("%s: %d failures\n", name, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check
