"""The pool against a plain model of its rules, step by step: who is granted, in what order, and what is in use."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minerua.errors import RequirementTooLarge
from minerua.kernels.pool import ResourcePool

NAMES = ("cpu", "bytes", "tokens")
AMOUNTS = st.fixed_dictionaries({name: st.integers(0, 5) for name in NAMES})


class Model:
    """The rules in the words of the documentation: no clever data structures, everything computed anew."""

    def __init__(self, capacity, backfill):
        self.capacity, self.backfill = dict(capacity), backfill
        self.held, self.queue, self.passed, self.bypasses = {}, [], {}, 0

    def in_use(self):
        return {name: sum(wanted[name] for wanted in self.held.values()) for name in NAMES}

    def possible(self, wanted):
        return all(wanted[name] <= self.capacity[name] for name in NAMES)

    def fits(self, wanted, ahead=()):
        """Whether it fits, even if those ahead had what they ask for, of the resources that it asks for."""
        taken = self.in_use()
        for other in ahead:
            taken = {name: taken[name] + other[name] for name in NAMES}
        return all(wanted[name] == 0 or wanted[name] <= self.capacity[name] - taken[name] for name in NAMES)

    def ask(self, number, wanted, priority):
        self.queue.append((-priority, number, wanted))
        self.queue.sort(key=lambda one: one[:2])
        self.passed[number] = 0
        return self.settle()

    def settle(self):
        """Grants as long as anybody may be granted; returns who was, in order."""
        granted = []
        while (one := self.next_one()) is not None:
            self.queue.remove(one)
            self.held[one[1]] = one[2]
            granted.append(one[1])
        return granted

    def next_one(self):
        ahead = []
        for one in self.queue:
            if self.fits(one[2], [other[2] for other in ahead]):
                if ahead:
                    self.bypasses += 1
                for other in ahead:
                    self.passed[other[1]] += 1
                return one
            if self.passed[one[1]] >= self.backfill:
                return None
            ahead.append(one)
        return None


class Pools(RuleBasedStateMachine):
    """Does the same to a pool and to the model, and compares."""

    @initialize(capacity=AMOUNTS, backfill=st.integers(0, 3))
    def make(self, capacity, backfill):
        self.pool, self.model = ResourcePool(capacity, backfill=backfill), Model(capacity, backfill)
        self.leases, self.pending, self.granted, self.refused = {}, {}, [], []
        self.number = 0
        self.peak = dict.fromkeys(NAMES, 0)

    def compare(self, expected):
        assert self.granted == expected
        self.granted.clear()
        for name, amount in self.model.in_use().items():
            self.peak[name] = max(self.peak[name], amount)

    def on_grant(self, number):
        def note(lease):
            self.granted.append(number)
            self.leases[number] = lease

        return note

    @rule(wanted=AMOUNTS, priority=st.sampled_from([0, 0, 0, 1, -1]))
    def request(self, wanted, priority):
        self.number += 1
        try:
            pending = self.pool.request(
                wanted, self.on_grant(self.number), lambda _, n=self.number: self.refused.append(n), priority=priority
            )
        except RequirementTooLarge:
            assert not self.model.possible(wanted)
            return
        assert self.model.possible(wanted)
        self.pending[self.number] = pending
        self.compare(self.model.ask(self.number, wanted, priority))

    @rule(wanted=AMOUNTS)
    def try_acquire(self, wanted):
        self.number += 1
        before = self.model.bypasses
        try:
            lease = self.pool.try_acquire(wanted)
        except RequirementTooLarge:
            assert not self.model.possible(wanted)
            return
        if self.model.ask(self.number, wanted, 0):
            self.leases[self.number] = lease
        else:
            self.model.queue = [one for one in self.model.queue if one[1] != self.number]
            assert self.model.bypasses == before
            assert lease is None

    @precondition(lambda self: self.leases)
    @rule(draw=st.data())
    def release(self, draw):
        number = draw.draw(st.sampled_from(sorted(self.leases)))
        del self.model.held[number]
        self.leases.pop(number).release()
        self.compare(self.model.settle())

    @precondition(lambda self: self.pending)
    @rule(draw=st.data())
    def cancel(self, draw):
        number = draw.draw(st.sampled_from(sorted(self.pending)))
        waits = any(one[1] == number for one in self.model.queue)
        self.model.queue = [one for one in self.model.queue if one[1] != number]
        assert self.pending.pop(number).cancel() is waits
        self.compare(self.model.settle())

    @precondition(lambda self: self.leases)
    @rule(draw=st.data(), more=AMOUNTS)
    def extend(self, draw, more):
        number = draw.draw(st.sampled_from(sorted(self.leases)))
        together = {name: more[name] + self.model.held[number][name] for name in NAMES}
        try:
            extended = self.leases[number].try_extend(more)
        except RequirementTooLarge:
            assert not self.model.possible(together)
            return
        assert extended is (self.model.possible(together) and self.model.fits(more))
        if extended:
            self.model.held[number] = together
        self.compare([])

    @rule(capacity=AMOUNTS)
    def resize(self, capacity):
        self.pool.resize(capacity)
        self.model.capacity = dict(capacity)
        gone = [one[1] for one in self.model.queue if not self.model.possible(one[2])]
        self.model.queue = [one for one in self.model.queue if one[1] not in gone]
        expected = self.model.settle()
        assert self.refused == gone
        self.refused.clear()
        self.compare(expected)

    @invariant()
    def accounts_agree(self):
        if not hasattr(self, "pool"):
            return
        found = self.pool.statistics()
        assert {name: one.in_use for name, one in found.resources.items()} == self.model.in_use()
        assert found.waiting == len(self.model.queue)
        assert found.bypasses == self.model.bypasses
        assert sum(found.live.values()) == len(self.model.held)
        for name, one in found.resources.items():
            assert one.peak >= max(self.peak[name], one.in_use)

    def teardown(self):
        for pending in getattr(self, "pending", {}).values():
            pending.cancel()
        for lease in getattr(self, "leases", {}).values():
            lease.release()
        if hasattr(self, "pool"):
            assert set(self.pool.in_use.values()) <= {0}


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
