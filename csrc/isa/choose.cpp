#include <array>
#include <cstdlib>
#include <string>

#include "core/error.hpp"
#include "isa/loops.hpp"

namespace minerua::isa {
namespace {

struct Candidate {
  const Loops* loops;
  bool supported;
};

#if defined(MINERUA_X86)
std::array<Candidate, 3> candidates() {
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return {{{&avx512, has_avx512}, {&avx2, has_avx2}, {&baseline, true}}};
}
#else
std::array<Candidate, 1> candidates() { return {{{&baseline, true}}}; }
#endif

const Loops& choose() {
  const char* const asked = std::getenv("MINERUA_ISA");
  for (const Candidate& candidate : candidates()) {
    if (asked != nullptr && std::string(asked) != candidate.loops->name) continue;
    if (candidate.supported) return *candidate.loops;
    MINERUA_EXPECTS(asked == nullptr, "MINERUA_ISA=" << asked << ": this machine does not run it; unset the variable");
  }
  MINERUA_EXPECTS(false, "MINERUA_ISA=" << asked << " is not one of baseline, avx2, avx512 (of those built for this machine)");
  return baseline;
}

}  // namespace

const Loops& loops() {
  static const Loops& chosen = choose();
  return chosen;
}

}  // namespace minerua::isa
