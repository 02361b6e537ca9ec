#include "core/ledger.hpp"

#include <pthread.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "core/error.hpp"

namespace minerua {
namespace {

std::atomic<unsigned> forks{0};
std::atomic<std::uint64_t> ledgers{0};

unsigned fork_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)registered;
  return forks.load(std::memory_order_relaxed);
}

/// This thread's holders, one for each ledger it ever took from, until the ledger's turn to be forgotten comes.
class Holders {
 public:
  ~Holders() {
    for (const auto& [ledger, holder] : known_) holder->drop();
  }

  Holder& of(std::uint64_t ledger) {
    for (const auto& [known, holder] : known_)
      if (known == ledger) return *holder;
    if (known_.size() >= 8) forget_idle();
    known_.reserve(known_.size() + 1);
    return *known_.emplace_back(ledger, new Holder).second;
  }

 private:
  void forget_idle() {
    const auto idle = std::partition(known_.begin(), known_.end(), [](const auto& one) { return one.second->holds(); });
    for (auto one = idle; one != known_.end(); ++one) one->second->drop();
    known_.erase(idle, known_.end());
  }

  std::vector<std::pair<std::uint64_t, Holder*>> known_{};
};

Holders& holders_of_this_thread() {
  thread_local Holders holders;
  return holders;
}

void add_up(Amount& sum, Amount amount) {
  if (__builtin_add_overflow(sum, amount, &sum)) sum = std::numeric_limits<Amount>::max();
}

const char* text_of(Outcome outcome) {
  switch (outcome) {
    case Outcome::timed_out: return "the resources did not come free in time";
    case Outcome::cancelled: return "the request was cancelled";
    case Outcome::closed: return "the ledger is closed";
    case Outcome::too_large: return "more is asked for than the capacity";
    case Outcome::nested: return "this thread holds a claim already";
    default: return "not granted";
  }
}

}  // namespace

NotGranted::NotGranted(Outcome outcome_) : std::runtime_error(text_of(outcome_)), outcome(outcome_) {}

Ledger::Ledger(std::vector<Amount> capacity, std::size_t backfill)
    : serial_(ledgers.fetch_add(1)), generation_(fork_generation()), backfill_(backfill), ahead_(capacity.size()) {
  for (const Amount amount : capacity) {
    MINERUA_EXPECTS(amount >= 0, "a capacity is " << amount << ", must be 0 or more");
    resources_.push_back({amount, 0, 0});
  }
}

Ledger::~Ledger() {
  for (Claim* claim = held_; claim != nullptr; claim = claim->after_)
    if (claim->holder_ != nullptr) claim->holder_->drop();
}

bool Ledger::abandoned() const { return generation_ != forks.load(std::memory_order_relaxed); }

Holder& Ledger::holder() { return holders_of_this_thread().of(serial_); }

// ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Claim& Ledger::record(const Needs& needs, std::string_view name, Holder* holder) {
  if (unused_ == nullptr) (unused_ = &records_.emplace_back())->ledger_ = this;
  Claim& claim = *unused_;
  claim.needs_.assign(needs.begin(), needs.end());  // may throw, as may the name: nothing has changed yet
  claim.name_.assign(name);
  unused_ = claim.after_;
  claim.after_ = nullptr;
  claim.serial_ = ++next_serial_;
  claim.outcome_ = Outcome::waiting;
  claim.holder_ = holder;
  return claim;
}

void Ledger::recycle(Claim& claim) {
  claim.serial_ = 0;
  claim.priority_ = 0;
  claim.passed_by_ = 0;
  claim.waited_ = false;
  claim.after_ = unused_;
  unused_ = &claim;
}

void Ledger::link(Claim& claim) {
  claim.before_ = nullptr;
  claim.after_ = held_;
  if (held_ != nullptr) held_->before_ = &claim;
  held_ = &claim;
}

void Ledger::unlink(Claim& claim) {
  (claim.before_ == nullptr ? held_ : claim.before_->after_) = claim.after_;
  if (claim.after_ != nullptr) claim.after_->before_ = claim.before_;
}

void Ledger::Due::add(Claim& claim) {
  claim.next_due_ = nullptr;
  (first == nullptr ? first : last->next_due_) = &claim;
  last = &claim;
}

// ── granting ─────────────────────────────────────────────────────────────────────────────────────────────────────────

bool Ledger::possible(const Needs& needs) const {
  for (const Need& need : needs)
    if (need.amount > resources_[need.resource].capacity) return false;
  return true;
}

bool Ledger::fits(const Needs& needs) const {
  for (const Need& need : needs)
    if (const auto& its = resources_[need.resource]; need.amount > its.capacity - its.in_use) return false;
  return true;
}

/// Whether it fits even if those in `ahead_` had what they ask for: then it cannot delay them.
bool Ledger::fits_behind(const Needs& needs) const {
  for (const Need& need : needs) {
    const auto& its = resources_[need.resource];
    const Amount left = its.capacity - its.in_use;
    if (left < need.amount || left - ahead_[need.resource] < need.amount) return false;
  }
  return true;
}

void Ledger::grant(Claim& claim) {
  for (const Need& need : claim.needs_) {
    auto& its = resources_[need.resource];
    its.in_use += need.amount;
    its.peak = std::max(its.peak, its.in_use);
  }
  ++counts_.granted;
  claim.outcome_ = Outcome::granted;
  if (claim.holder_ != nullptr) claim.holder_->take();
  link(claim);
}

void Ledger::note_wait(const Claim& claim) {
  const double seconds = std::chrono::duration<double>(Clock::now() - claim.asked_).count();
  ++counts_.waits;
  counts_.wait_seconds += seconds;
  counts_.longest_wait_seconds = std::max(counts_.longest_wait_seconds, seconds);
  const auto bound = std::upper_bound(wait_bounds_seconds.begin(), wait_bounds_seconds.end(), seconds);
  ++counts_.wait_histogram[static_cast<std::size_t>(bound - wait_bounds_seconds.begin())];
}

/// Ends the waiting of a claim that has left the queue, or never was in it: wakes its thread, or makes its notice due. The
/// thread is woken under the mutex: afterwards the record may be somebody else's.
void Ledger::settle(Claim& claim, Outcome outcome, Due& due) {
  if (outcome == Outcome::granted) {
    grant(claim);
    if (claim.waited_) note_wait(claim);
  } else {
    claim.outcome_ = outcome;
    claim.holder_ = nullptr;
    ++(outcome == Outcome::timed_out ? counts_.timeouts : outcome == Outcome::cancelled ? counts_.cancellations : counts_.failures);
  }
  if (claim.notice_)
    due.add(claim);
  else
    claim.wake_.notify_one();
}

/// Grants what can be granted. Every change that frees something, or takes somebody out of the queue, ends with it.
void Ledger::sweep(Due& due) {
  while (!queue_.empty() && fits(queue_.begin()->second->needs_)) {
    Claim& head = *queue_.begin()->second;
    queue_.erase(queue_.begin());
    settle(head, Outcome::granted, due);
  }
  if (backfill_ > 0 && queue_.size() > 1) pass_by(due);
}

/// Lets later requests pass those that wait, where nobody is delayed and nobody was passed too often.
void Ledger::pass_by(Due& due) {
  std::fill(ahead_.begin(), ahead_.end(), 0);
  Claim* passed = nullptr;
  bool may_pass = true;
  for (auto next = queue_.begin(); may_pass && next != queue_.end();) {
    Claim& claim = *next->second;
    if (passed != nullptr && fits_behind(claim.needs_)) {
      next = queue_.erase(next);
      settle(claim, Outcome::granted, due);
      ++counts_.bypasses;
      for (Claim* one = passed; one != nullptr; one = one->next_passed_) may_pass &= ++one->passed_by_ < backfill_;
      continue;
    }
    for (const Need& need : claim.needs_) add_up(ahead_[need.resource], need.amount);
    claim.next_passed_ = std::exchange(passed, &claim);
    may_pass = claim.passed_by_ < backfill_;
    ++next;
  }
}

/// Calls the notices that are due, in order, with no lock held. A notice may release or request in turn; what becomes due
/// then is called after it, by the same loop, so that a long chain of them needs no deep stack.
void Ledger::tell(const Due& due) {
  if (due.first == nullptr) return;
  thread_local Due round;
  thread_local bool telling = false;
  (round.first == nullptr ? round.first : round.last->next_due_) = due.first;
  round.last = due.last;
  if (std::exchange(telling, true)) return;
  while (round.first != nullptr) {
    Claim& claim = *round.first;
    round.first = claim.next_due_;
    const Outcome outcome = claim.outcome_;
    const Notice notice = std::exchange(claim.notice_, nullptr);
    notice(claim, outcome);  // a granted claim may be gone afterwards
    if (outcome != Outcome::granted) claim.ledger_->forget(claim);
  }
  telling = false;
}

// ── what callers see ─────────────────────────────────────────────────────────────────────────────────────────────────

/// Why a request cannot even wait; waiting if it can.
Outcome Ledger::obstacle(const Needs& needs, const Holder* holder) {
  const Outcome found = closed_             ? Outcome::closed
                        : !possible(needs)  ? Outcome::too_large
                        : holder != nullptr && holder->holds() ? Outcome::nested
                                            : Outcome::waiting;
  if (found != Outcome::waiting) ++counts_.failures;
  return found;
}

Ledger::Asked Ledger::take(const Needs& needs, std::string_view name, Holder* holder) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const Outcome found = obstacle(needs, nullptr); found != Outcome::waiting) return {nullptr, 0, found};
  if (!fits(needs)) return {nullptr, 0, Outcome::waiting};
  Claim& claim = record(needs, name, holder);
  if (queue_.empty()) {
    grant(claim);
  } else {  // it may have a better place than those who wait, or may pass them
    const auto its_place = queue_.emplace(place(claim), &claim).first;
    Due none;  // nobody else's turn can have come
    sweep(none);
    if (claim.outcome_ == Outcome::waiting) {
      queue_.erase(its_place);
      recycle(claim);
      return {nullptr, 0, Outcome::waiting};
    }
  }
  return {&claim, claim.serial_, Outcome::granted};
}

Ledger::Asked Ledger::queue(const Needs& needs, std::int64_t priority, std::string_view name, Holder* holder,
                            Notice notice) {
  Due due;
  std::unique_lock<std::mutex> lock(mutex_);
  if (const Outcome found = obstacle(needs, holder); found != Outcome::waiting) return {nullptr, 0, found};
  Claim& claim = record(needs, name, holder);
  if (queue_.empty() && fits(needs)) {
    grant(claim);
    if (!notice) return {&claim, claim.serial_, Outcome::granted};
    claim.notice_ = std::move(notice);
    due.add(claim);
  } else {
    claim.priority_ = priority;
    try {
      queue_.emplace(place(claim), &claim);
    } catch (...) {  // no memory for one more who waits
      recycle(claim);
      throw;
    }
    claim.notice_ = std::move(notice);
    sweep(due);
    if (claim.outcome_ == Outcome::waiting) {
      claim.waited_ = true;
      claim.asked_ = Clock::now();
    }
  }
  const Asked asked{&claim, claim.serial_, claim.outcome_};
  lock.unlock();
  tell(due);
  return asked;
}

Outcome Ledger::wait(Claim& claim, std::optional<Clock::time_point> until) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto is_known = [&claim] { return claim.outcome_ != Outcome::waiting; };
  if (until)
    claim.wake_.wait_until(lock, *until, is_known);
  else
    claim.wake_.wait(lock, is_known);
  return claim.outcome_;
}

Outcome Ledger::withdraw(Claim& claim, std::uint64_t serial, Outcome why) {
  Due due;
  Notice dropped;  // destroyed with no lock held
  const Outcome outcome = withdraw(claim, serial, why, due, dropped);
  tell(due);
  return outcome;
}

Outcome Ledger::withdraw(Claim& claim, std::uint64_t serial, Outcome why, Due& due, Notice& dropped) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (claim.serial_ != serial) return Outcome::granted;
  if (claim.outcome_ != Outcome::waiting) return claim.outcome_;
  queue_.erase(place(claim));
  dropped.swap(claim.notice_);
  settle(claim, why, due);
  if (dropped) recycle(claim);
  sweep(due);
  return why;
}

void Ledger::forget(Claim& claim) {
  const std::lock_guard<std::mutex> lock(mutex_);
  recycle(claim);
}

void Ledger::release(Claim& claim, bool leaked) {
  Due due;
  std::unique_lock<std::mutex> lock(mutex_);
  for (const Need& need : claim.needs_) resources_[need.resource].in_use -= need.amount;
  unlink(claim);
  if (claim.holder_ != nullptr) std::exchange(claim.holder_, nullptr)->drop();
  if (leaked) ++counts_.leaked[claim.name_];
  recycle(claim);
  if (queue_.empty()) return;
  sweep(due);
  lock.unlock();
  tell(due);
}

Outcome Ledger::extend(Claim& claim, const Needs& more) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) return Outcome::closed;
  Needs together = claim.needs_;
  for (const Need& need : more) {
    const auto same = [&need](const Need& one) { return one.resource == need.resource; };
    const auto held = std::find_if(together.begin(), together.end(), same);
    if (held == together.end())
      together.push_back(need);
    else
      add_up(held->amount, need.amount);
  }
  if (!possible(together)) return Outcome::too_large;
  if (!fits(more)) return Outcome::waiting;
  for (const Need& need : more) {
    auto& its = resources_[need.resource];
    its.in_use += need.amount;
    its.peak = std::max(its.peak, its.in_use);
  }
  claim.needs_.swap(together);
  return Outcome::granted;
}

Claim& Ledger::split(Claim& claim, const Needs& part) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Claim& own = record(part, claim.name_, nullptr);
  for (const Need& need : part)
    for (Need& held : claim.needs_)
      if (held.resource == need.resource) held.amount -= need.amount;
  own.outcome_ = Outcome::granted;
  link(own);
  return own;
}

void Ledger::hand_over(Claim& claim) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (claim.holder_ != nullptr) std::exchange(claim.holder_, nullptr)->drop();
}

void Ledger::resize(const Needs& capacity) {
  Due due;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Need& one : capacity) resources_[one.resource].capacity = one.amount;
    for (auto next = queue_.begin(); next != queue_.end();) {
      Claim& claim = *next->second;
      if (!possible(claim.needs_)) {
        next = queue_.erase(next);
        settle(claim, Outcome::too_large, due);
      } else {
        ++next;
      }
    }
    sweep(due);
  }
  tell(due);
}

void Ledger::close() {
  Due due;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    for (const auto& [its_place, claim] : queue_) settle(*claim, Outcome::closed, due);
    queue_.clear();
  }
  tell(due);
}

// ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────────

bool Ledger::closed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return closed_;
}

LedgerStatistics Ledger::statistics() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  LedgerStatistics snapshot = counts_;
  snapshot.resources = resources_;
  snapshot.waiting = queue_.size();
  snapshot.closed = closed_;
  for (const Claim* claim = held_; claim != nullptr; claim = claim->after_) ++snapshot.live[claim->name_];
  return snapshot;
}

// ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CancelToken::Watch::Watch(CancelToken* token, Ledger& ledger, Claim& claim)
    : token_(token), ledger_(ledger), claim_(claim), serial_(claim.serial()) {
  if (token_ == nullptr) return;
  {
    const std::lock_guard<std::mutex> lock(token_->mutex_);
    token_->watches_.push_back(this);
    if (!token_->cancelled()) return;
  }
  ledger_.withdraw(claim_, serial_, Outcome::cancelled);
}

CancelToken::Watch::~Watch() {
  if (token_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(token_->mutex_);
  token_->watches_.erase(std::find(token_->watches_.begin(), token_->watches_.end(), this));
}

void CancelToken::cancel() {
  Ledger::Due due;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_.store(true, std::memory_order_release);
    for (const Watch* watch : watches_) {
      Notice dropped;
      watch->ledger_.withdraw(watch->claim_, watch->serial_, Outcome::cancelled, due, dropped);
    }
  }
  Ledger::tell(due);
}

Lease acquire(Ledger& ledger, const Needs& needs, const AcquireOptions& options) {
  constexpr std::chrono::hours for_ever(24 * 365 * 100);  // beyond it the clock's numbers end
  std::optional<Clock::time_point> until;
  if (options.timeout && *options.timeout < for_ever) until = Clock::now() + *options.timeout;
  if (options.cancel != nullptr && options.cancel->cancelled()) throw NotGranted(Outcome::cancelled);
  Holder* const holder = options.nested ? nullptr : &ledger.holder();
  const auto [claim, serial, at_once] = ledger.queue(needs, options.priority, options.name, holder);
  if (claim == nullptr) throw NotGranted(at_once);
  Outcome outcome = at_once;
  if (outcome == Outcome::waiting) {
    const CancelToken::Watch watch(options.cancel, ledger, *claim);
    outcome = ledger.wait(*claim, until);
    if (outcome == Outcome::waiting) outcome = ledger.withdraw(*claim, serial, Outcome::timed_out);
  }
  if (outcome == Outcome::granted) return Lease(ledger, *claim);
  ledger.forget(*claim);
  throw NotGranted(outcome);
}

}  // namespace minerua
