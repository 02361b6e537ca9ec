/// @file ledger.hpp
/// Who holds how much of what: requests over several resources are granted whole or not at all, first come first served.
///
/// All-or-nothing under one mutex: nobody holds a part while waiting for the rest, so requests cannot lock each other out;
/// who holds a claim and asks for a second one could, and is refused. The ledger counts; it owns no memory and no device.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace minerua {

using Amount = std::int64_t;
using Clock = std::chrono::steady_clock;

/// So much of one resource, known by its place in the ledger's capacity.
struct Need {
  std::uint32_t resource;
  Amount amount;
};

/// A request: every resource at most once, amounts of 1 or more.
using Needs = std::vector<Need>;

enum class Outcome { waiting, granted, timed_out, cancelled, closed, too_large, nested };

/// The claims that one thread holds of one ledger: what makes a second acquire of that thread a nested one. Counts itself
/// too, so that it lives as long as its thread or one of its claims.
class Holder {
 public:
  bool holds() const { return references_.load(std::memory_order_acquire) > 1; }
  void take() { references_.fetch_add(1, std::memory_order_relaxed); }
  void drop() {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

 private:
  ~Holder() = default;
  std::atomic<std::size_t> references_{1};
};

class Claim;
class Ledger;

/// What a request that does not block is told in the end, once, with no lock held: `granted` (the claim is the receiver's
/// to release), `closed` or `too_large` (there is no claim any more). Must not throw.
using Notice = std::function<void(Claim&, Outcome)>;

/// A request, and, once granted, what is held. Made, owned and used again by its ledger, never by anybody else.
class Claim {
 public:
  /// Changes with every use of the record: a claim that is gone is told from the one that came after it.
  std::uint64_t serial() const { return serial_; }
  /// Only for whoever holds the claim: nobody else changes it then but by `extend`.
  const Needs& needs() const { return needs_; }

 private:
  friend class Ledger;
  using Place = std::pair<std::int64_t, std::uint64_t>;  // priority turned round, serial: the order of the queue

  Needs needs_{};
  std::string name_{};
  std::uint64_t serial_ = 0;
  Outcome outcome_ = Outcome::waiting;
  std::int64_t priority_ = 0;
  std::size_t passed_by_ = 0;
  bool waited_ = false;
  Clock::time_point asked_{};
  std::condition_variable wake_{};
  Notice notice_{};
  Holder* holder_ = nullptr;
  Claim* before_ = nullptr;  // in the list of what is held
  Claim* after_ = nullptr;   // there, or in the list of unused records
  Claim* next_due_ = nullptr;
  Claim* next_passed_ = nullptr;
  Ledger* ledger_ = nullptr;
};

/// One resource in a snapshot.
struct ResourceStatistics {
  Amount capacity, in_use, peak;
};

/// Upper ends, in seconds, of all but the last class of waiting times.
constexpr std::array<double, 7> wait_bounds_seconds = {1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0};

/// Everything at one moment.
struct LedgerStatistics {
  std::vector<ResourceStatistics> resources{};
  std::uint64_t granted = 0, waits = 0, bypasses = 0, timeouts = 0, cancellations = 0, failures = 0;
  std::size_t waiting = 0;
  double wait_seconds = 0, longest_wait_seconds = 0;  // of the grants that had to wait, which `waits` counts
  std::array<std::uint64_t, wait_bounds_seconds.size() + 1> wait_histogram{};
  std::map<std::string, std::uint64_t> live{}, leaked{};
  bool closed = false;
};

/// All functions may be called from any thread, also from within a Notice. After a fork nothing but `abandoned` may be
/// called in the child: a thread that is gone may hold the mutex. The ledger outlives whoever holds or waits.
class Ledger {
 public:
  /// @param capacity At least 0 each.
  /// @param backfill How many later requests may pass each one that waits, provided that they fit even if all that wait
  ///     before them had what they ask for; 0 is strictly first come first served.
  Ledger(std::vector<Amount> capacity, std::size_t backfill);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  /// Whether this process is a forked child of the one that made the ledger.
  bool abandoned() const;

  /// This thread's holder, made where there is none yet.
  Holder& holder();

  /// What became of a request by now. Without a claim it ended: closed, too_large, nested, or (take only) waiting.
  struct Asked {
    Claim* claim;
    std::uint64_t serial;
    Outcome outcome;
  };

  /// Grants at once or not at all. Who holds a claim may do so too: who does not wait locks nobody out.
  /// @param holder Whose claim it will be; null is nobody's.
  Asked take(const Needs& needs, std::string_view name, Holder* holder);

  /// Grants at once, or queues. Without a notice the caller must then `wait` until the outcome is another than waiting,
  /// and `forget` the claim if it is not granted; with one, the claim belongs to the notice, which may have been called
  /// before this returns. A notice is not called where there is no claim in what is returned. Nested if the holder holds.
  Asked queue(const Needs& needs, std::int64_t priority, std::string_view name, Holder* holder, Notice notice = {});

  /// Sleeps until the outcome of a queued claim without notice is known, or until then; returns the outcome.
  Outcome wait(Claim& claim, std::optional<Clock::time_point> until);

  /// Takes a request out of the queue, and lets those behind it move up. @param why timed_out or cancelled.
  /// @return why, or, where the request had its outcome before, that one: a granted claim stays granted. Of a record with
  ///     another serial by now, granted.
  Outcome withdraw(Claim& claim, std::uint64_t serial, Outcome why);

  /// Gives back the record of a claim without notice that was not granted.
  void forget(Claim& claim);

  /// Gives back what a granted claim holds, and grants it on. @param leaked Nobody released it: counted under its name.
  void release(Claim& claim, bool leaked = false);

  /// Adds to what a claim holds if it is free, passing those who wait: they wait for this claim's end anyway.
  /// @return granted; waiting, if it is not free now; too_large, if it never can be; closed.
  Outcome extend(Claim& claim, const Needs& more);

  /// Moves a part of what a claim holds to a claim of its own, which is released by itself and is nobody's.
  Claim& split(Claim& claim, const Needs& part);

  /// From now on nobody's: its thread may acquire again.
  void hand_over(Claim& claim);

  /// Changes capacities; what is in use stays in use. Requests that became impossible end as too_large.
  void resize(const Needs& capacity);

  /// Ends every waiting request, and every later one, as closed. What is held stays held.
  void close();

  bool closed() const;
  LedgerStatistics statistics() const;
  std::size_t backfill() const { return backfill_; }

 private:
  friend class CancelToken;

  /// Claims whose notices are due, in order.
  struct Due {
    Claim* first = nullptr;
    Claim* last = nullptr;
    void add(Claim& claim);
  };

  bool possible(const Needs& needs) const;
  bool fits(const Needs& needs) const;
  bool fits_behind(const Needs& needs) const;
  Outcome obstacle(const Needs& needs, const Holder* holder);
  Claim& record(const Needs& needs, std::string_view name, Holder* holder);
  void recycle(Claim& claim);
  void link(Claim& claim);
  void unlink(Claim& claim);
  void grant(Claim& claim);
  void settle(Claim& claim, Outcome outcome, Due& due);
  Outcome withdraw(Claim& claim, std::uint64_t serial, Outcome why, Due& due, Notice& dropped);
  void sweep(Due& due);
  void pass_by(Due& due);
  void note_wait(const Claim& claim);
  static Claim::Place place(const Claim& claim) { return {-claim.priority_, claim.serial_}; }
  static void tell(const Due& due);

  const std::uint64_t serial_;
  const unsigned generation_;
  const std::size_t backfill_;
  mutable std::mutex mutex_{};
  std::vector<ResourceStatistics> resources_{};
  std::vector<Amount> ahead_{};
  std::map<Claim::Place, Claim*> queue_{};
  std::deque<Claim> records_{};
  Claim* unused_ = nullptr;
  Claim* held_ = nullptr;
  std::uint64_t next_serial_ = 0;
  bool closed_ = false;
  LedgerStatistics counts_{};  // without resources and live: those are put together when asked for
};

/// A flag that ends the waiting of every acquire which was given it. Once set it stays set. Outlives those acquires.
class CancelToken {
 public:
  void cancel();
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }

  /// While it lives, `cancel` withdraws this claim. Only on the waiting thread.
  class Watch {
   public:
    Watch(CancelToken* token, Ledger& ledger, Claim& claim);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    friend class CancelToken;
    CancelToken* token_;
    Ledger& ledger_;
    Claim& claim_;
    std::uint64_t serial_;
  };

 private:
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_{};  // taken before a ledger's, never while one is held
  std::vector<Watch*> watches_{};
};

/// What acquire throws instead of returning a lease.
class NotGranted : public std::runtime_error {
 public:
  explicit NotGranted(Outcome outcome);
  const Outcome outcome;
};

struct AcquireOptions {
  std::optional<std::chrono::nanoseconds> timeout{};
  std::int64_t priority = 0;
  CancelToken* cancel = nullptr;
  std::string_view name{};
  bool nested = false;
};

/// A claim that releases itself; for C++.
class Lease {
 public:
  Lease(Ledger& ledger, Claim& claim) : ledger_(&ledger), claim_(&claim) {}
  Lease(Lease&& other) noexcept : ledger_(other.ledger_), claim_(std::exchange(other.claim_, nullptr)) {}
  Lease& operator=(Lease&& other) noexcept {
    std::swap(ledger_, other.ledger_);
    std::swap(claim_, other.claim_);
    return *this;
  }
  ~Lease() { release(); }
  void release() {
    if (Claim* claim = std::exchange(claim_, nullptr)) ledger_->release(*claim);
  }
  bool extend(const Needs& more) { return claim_ != nullptr && ledger_->extend(*claim_, more) == Outcome::granted; }

 private:
  Ledger* ledger_;
  Claim* claim_;
};

/// Waits until the needs are granted. @throws NotGranted with the outcome.
Lease acquire(Ledger& ledger, const Needs& needs, const AcquireOptions& options = {});

}  // namespace minerua
