#include "core/chunks.hpp"

#include "core/parallel.hpp"

namespace minerua {

void over_strands(std::size_t chunks, const std::function<void(Claims&)>& strand) {
  Claims claims(chunks);
  parallel_for(std::min(num_threads(), chunks), [&](std::size_t) {
    try {
      strand(claims);
    } catch (...) {
      claims.fail();
      throw;
    }
  });
}

}  // namespace minerua
