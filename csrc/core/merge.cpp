#include "core/merge.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "isa/loops.hpp"

namespace minerua {
namespace {

/// Elements of one task of the pool: fixed, so that chunk boundaries never depend on the number of threads.
constexpr std::size_t task_elements = std::size_t{1} << 15;

/// Floats that the inputs of one block may fill: 32 KiB, so that they stay in the first-level cache while the children are
/// written.
constexpr std::size_t block_budget = 8192;

struct Plan {
  const std::vector<ConstTensorView>& experts;
  const std::optional<ConstTensorView>& base;
  const float* coefficients;
  std::size_t children;
  const TensorView& out;
  std::size_t block;  // elements, a multiple of 32

  std::size_t size() const { return experts.front().size; }
};

void expect_valid(const Plan& plan) {
  for (std::size_t k = 0; k < plan.experts.size(); ++k) {
    const ConstTensorView& expert = plan.experts[k];
    MINERUA_EXPECTS(expert.size == plan.size() && expert.dtype == plan.experts.front().dtype,
                    "merge: expert " << k << " has " << expert.size << " elements and must match expert 0, "
                                     << plan.size() << " elements, in size and type");
    MINERUA_EXPECTS(expert.data != nullptr || expert.size == 0, "merge: expert " << k << " is a null pointer");
  }
  MINERUA_EXPECTS(!plan.base || plan.base->size == plan.size(),
                  "merge: base has " << plan.base->size << " elements, the experts " << plan.size());
  MINERUA_EXPECTS(plan.out.size == plan.children * plan.size(),
                  "merge: out has " << plan.out.size << " elements, " << plan.children << " children of "
                                    << plan.size() << " need " << plan.children * plan.size());
  for (std::size_t i = 0; i < plan.children * plan.experts.size(); ++i)
    MINERUA_EXPECTS(std::isfinite(plan.coefficients[i]),
                    "merge: coefficient (" << i / plan.experts.size() << ", " << i % plan.experts.size() << ") is "
                                           << plan.coefficients[i] << ", not finite");
}

/// Floats of one task: the base and the K terms of a block. Not initialised: `read_terms` fills what is used.
struct Buffer {
  explicit Buffer(const Plan& plan)
      : values(new float[(plan.experts.size() + 1) * plan.block]), base(values.get()), terms(base + plan.block) {}

  std::unique_ptr<float[]> values;
  float* base;
  float* terms;
};

void read_block(const Plan& plan, std::size_t first, std::size_t count, Buffer& buffer) {
  const isa::Loops& loops = isa::loops();
  if (plan.base) loops.read_terms[static_cast<int>(plan.base->dtype)](plan.base->at(first), nullptr, buffer.base, count);
  for (std::size_t k = 0; k < plan.experts.size(); ++k) {
    const ConstTensorView& expert = plan.experts[k];
    loops.read_terms[static_cast<int>(expert.dtype)](expert.at(first), plan.base ? buffer.base : nullptr,
                                                     buffer.terms + k * plan.block, count);
  }
}

void run_task(const Plan& plan, std::size_t task) {
  Buffer buffer(plan);
  const std::size_t end = std::min(plan.size(), (task + 1) * task_elements);
  for (std::size_t first = task * task_elements; first < end; first += plan.block) {
    const std::size_t count = std::min(plan.block, end - first);
    read_block(plan, first, count, buffer);
    const isa::Sums sums{plan.base ? buffer.base : nullptr, buffer.terms,  plan.block, plan.experts.size(),
                         plan.coefficients,                 plan.children, count};
    isa::loops().write_children[static_cast<int>(plan.out.dtype)](sums, plan.out.at(first), plan.size());
  }
}

}  // namespace

void merge(const std::vector<ConstTensorView>& experts, const std::optional<ConstTensorView>& base,
           const float* coefficients, std::size_t children, const TensorView& out) {
  MINERUA_EXPECTS(!experts.empty(), "merge: needs at least one expert");
  MINERUA_EXPECTS(children > 0, "merge: needs at least one child, one row of coefficients");
  const std::size_t fitting = block_budget / (experts.size() + 1) / 32 * 32;
  const Plan plan{experts, base, coefficients, children, out, std::clamp<std::size_t>(fitting, 128, 2048)};
  expect_valid(plan);
  const std::size_t tasks = (plan.size() + task_elements - 1) / task_elements;
  parallel_for(tasks, [&plan](std::size_t task) { run_task(plan, task); });
}

}  // namespace minerua
