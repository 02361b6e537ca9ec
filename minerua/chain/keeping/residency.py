"""Which models are in memory: each loaded once, all together within a budget, the least recently used one leaves."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

from minerua.chain.keeping.footprint import declared_bytes, resident_bytes
from minerua.chain.keeping.models import Direct, Load, Model, PoolRequest, ResidencyStatistics, close_model, evicted
from minerua.errors import PoolClosed, RequirementTooLarge
from minerua.values import Setup, Skill

if TYPE_CHECKING:
    from minerua.kernels.pool import ResourcePool

_Key = tuple[int, Setup]

_SIZES = 256
"""Of how many models it is remembered what they took."""

_GLANCE_SECONDS = 0.02
"""How often a prefetch looks whether the pool has room."""

_PATIENCE_SECONDS = 1.0
"""How long a use waits for room before others that would only prolong the wait have to wait too."""


class Use:
    """A model in use: a context manager that yields the callable and keeps it loaded meanwhile."""

    __slots__ = ("_model", "_residency", "_setup", "_skill")

    def __init__(self, residency: ModelResidency, skill: Skill, setup: Setup) -> None:
        self._residency, self._skill, self._setup = residency, skill, setup
        self._model: Model | None = None

    def __enter__(self) -> Callable[..., Any]:
        self._model = self._residency._pin(self._skill, self._setup)
        return self._model.call

    def __exit__(self, *_: object) -> None:
        model, self._model = self._model, None
        if model is not None:
            self._residency._unpin(model)


@final
class ModelResidency:
    """Loads skills when they are used and keeps them within a budget of bytes. Safe for threads.

    A model is known by its skill's `load` and the setup: skills that share the function share the model. What a model
    takes is, in this order, `Skill.loaded_bytes`, the attribute `loaded_bytes` or `nbytes` of what `load` returned, or
    by how much this process grew while it was loaded, which is an estimate. A model whose size is learned only by
    loading it, and which does not fit beside those in use, is closed and loaded again when there is room: the budget
    holds. A model that leaves is closed: its `close()` is called, if it has one.

    Whoever uses one model at a time waits for room, never for ever; whoever holds a model while asking for another
    must have room for both.

    Args:
        budget_bytes: What all models may take together; `None` for no bound: then a model stays until `close`, and
            whoever uses the residency must be done before.
        pool: Where their bytes are held as leases, so that models and steps share what there is; ask for a model
            before a lease, not while holding one.
        resource: The pool's resource that they count against.

    Example:
        >>> residency = ModelResidency(1 << 20)
        >>> double = Skill("double", load=lambda setup: lambda x: {"y": 2 * x}, loaded_bytes=1000)
        >>> with residency.use(double, Setup()) as call:
        ...     call(x=3)
        {'y': 6}
        >>> residency.statistics().bytes
        1000
        >>> residency.close()
    """

    def __init__(
        self, budget_bytes: int | None = None, *, pool: ResourcePool | None = None, resource: str = "host_bytes"
    ) -> None:
        self.budget_bytes: Final = budget_bytes
        self._pool, self._resource = pool, resource
        self._changed = threading.Condition(threading.RLock())
        self._measuring = threading.Lock()
        self._models: OrderedDict[_Key, Model] = OrderedDict()
        self._loads: dict[_Key, Load] = {}
        self._sizes: OrderedDict[_Key, tuple[Any, int]] = OrderedDict()  # with the `load`: its id must not come again
        self._bytes = self._peak = 0  # of models that are loaded, being loaded, or being closed
        self._plan: deque[tuple[Skill, Setup]] = deque()
        self._plan_number = 0
        self._prefetcher: threading.Thread | None = None
        self._is_closed = False
        self._hits = self._load_count = self._prefetches = self._evictions = self._failures = 0
        self._wait_seconds = 0.0
        self._starving = 0  # how many uses have waited long for room

    @property
    def keeps_all(self) -> bool:
        """Whether a model that was loaded stays until `close`, which comes after the last use then."""
        return self.budget_bytes is None and self._pool is None

    # ── use ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def use(self, skill: Skill, setup: Setup) -> Use | Direct:
        """Returns a context manager that yields what to call; the model stays loaded inside it.

        Entering waits until the model is loaded, and until there is room for it.

        Args:
            skill: With `call` or `load`.
            setup: How it is loaded.

        Raises:
            RequirementTooLarge: On entering, if the model alone is larger than the budget.
            PoolClosed: On entering, if the residency was closed.
            Exception: On entering, whatever `load` raises; the next use tries again.
        """
        return Direct(skill.call) if skill.call is not None else Use(self, skill, setup)

    def is_loaded(self, skill: Skill, setup: Setup) -> bool:
        """Whether a use would not wait now."""
        return skill.call is not None or (id(skill.load), setup) in self._models

    def _pin(self, skill: Skill, setup: Setup) -> Model:
        key = (id(skill.load), setup)
        with self._changed:
            model = self._models.get(key)
            if model is not None and not self._starving:
                self._hits += 1
                return self._pinned(key, model)
        start = time.monotonic()
        try:
            return self._bring(key, skill, setup)
        finally:
            with self._changed:
                self._wait_seconds += time.monotonic() - start

    def _pinned(self, key: _Key, model: Model) -> Model:
        model.pins += 1
        if model.plan:
            model.plan = 0
            self._changed.notify_all()  # it no longer stands in a prefetch's way
        self._models.move_to_end(key)
        return model

    def _unpin(self, model: Model) -> None:
        with self._changed:
            model.pins -= 1
            if not model.pins:
                self._changed.notify_all()

    def _bring(self, key: _Key, skill: Skill, setup: Setup) -> Model:
        """Returns the model, pinned: loads it, or waits for whoever does."""
        while True:
            with self._changed:
                # who waits long for room goes first; not for ever: the caller may hold what that one waits for
                self._changed.wait_for(lambda: not self._starving, _PATIENCE_SECONDS)
                self._refuse_if_closed()
                if (model := self._models.get(key)) is not None:
                    self._hits += 1
                    return self._pinned(key, model)
                other = self._loads.get(key)
                if other is None:
                    load = self._loads[key] = Load()
                else:
                    self._changed.wait_for(partial(getattr, other, "is_over"))
                    if other.error is not None:
                        raise other.error
                    continue
            if (model := self._load(key, skill, setup, load)) is not None:
                return model

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise PoolClosed("the models were closed; make a new ModelResidency, or close it after the last run")

    # ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(
        self, key: _Key, skill: Skill, setup: Setup, load: Load, *, plan: int = 0, leases: list[Any] | None = None
    ) -> Model | None:
        """Loads a model that nobody else loads, tells all who wait, and pins it unless it is for a plan.

        Returns:
            `None` for a plan if the model turned out not to fit: it was closed again.
        """
        try:
            model = self._loaded(key, skill, setup, plan, leases)
        except BaseException as error:  # who waits must hear of it whatever it is; raised again
            with self._changed:
                # an interrupt is for the thread that it reached; who waits for a prefetch tries by itself
                load.error = error if isinstance(error, Exception) and not plan else None
                self._failures += 1
                self._end(key, load)
            raise
        with self._changed:
            self._end(key, load)
            if model is None:
                return None
            self._models[key] = model
            self._load_count += 1
            self._prefetches += bool(plan)
            model.plan = plan
            return model if plan else self._pinned(key, model)

    def _end(self, key: _Key, load: Load) -> None:
        del self._loads[key]
        load.is_over = True
        self._changed.notify_all()

    def _loaded(self, key: _Key, skill: Skill, setup: Setup, plan: int, leases: list[Any] | None) -> Model | None:
        """Loads a model into the room that was taken for it; what turns out larger is loaded again once it fits."""
        while True:
            known = self._size(key, skill)
            held = self._reserve(skill, known, plan) if leases is None else leases
            if held is None:
                return None
            try:
                call, nbytes = self._read(key, skill, setup, known)
                if self._keeps(skill, call, nbytes - known, held, plan):
                    return Model(skill, call, nbytes, held)
            except BaseException:  # an interrupt too must give the bytes back; raised again
                self._give_back(known, held)
                raise
            self._give_back(known, held)
            if plan:
                return None

    def _keeps(self, skill: Skill, call: Any, more_bytes: int, leases: list[Any], plan: int) -> bool:
        """Takes the room that a loaded model needs beyond what was taken; without it, closes the model again."""
        fits = False
        try:
            fits = more_bytes <= 0 or self._grow(more_bytes, leases, plan)
        finally:
            if not fits:
                close_model(skill, call)
        return fits

    def _size(self, key: _Key, skill: Skill) -> int:
        """What a model will take as far as anybody knows; 0 if nobody does."""
        if skill.loaded_bytes is not None:
            return skill.loaded_bytes
        with self._changed:
            return self._sizes.get(key, (None, 0))[1]

    def _read(self, key: _Key, skill: Skill, setup: Setup, known: int) -> tuple[Callable[..., Any], int]:
        """Loads a model; returns what to call and what it takes."""
        if skill.load is None:
            raise TypeError(f"the skill {skill.name!r} has neither call nor load: configure it before it is used")
        if skill.loaded_bytes is not None or known:
            return skill.load(setup), known
        with self._measuring:  # two loads at a time could not be told apart
            before = resident_bytes()
            call = skill.load(setup)
            grown = max(0, resident_bytes() - before)
        nbytes = declared_bytes(call)
        nbytes = grown if nbytes is None else nbytes
        with self._changed:
            self._sizes[key] = (skill.load, nbytes)
            while len(self._sizes) > _SIZES:
                self._sizes.popitem(last=False)
        return call, nbytes

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reserve(self, skill: Skill, nbytes: int, plan: int) -> list[Any] | None:
        """Takes room for a model, evicts what has to go and waits for what is in use; a plan waits until a newer one.

        Returns:
            The leases of its bytes; `None` if the plan is over.
        """
        if self.budget_bytes is not None and nbytes > self.budget_bytes:
            raise RequirementTooLarge(
                f"the model of the skill {skill.name!r} takes {nbytes} bytes, all models together may take "
                f"{self.budget_bytes}: raise the budget, or choose a smaller model"
            )
        if not self._take_bytes(nbytes, plan):
            return None
        leases = None
        try:
            leases = self._leased(nbytes, plan)
        finally:
            if leases is None:
                self._give_back(nbytes, [])
        return leases

    def _take_bytes(self, nbytes: int, plan: int) -> bool:
        """Takes bytes of the budget; returns whether it did, or the plan is over."""
        start, starves = time.monotonic(), 0
        try:
            while True:
                with self._changed:
                    if self._is_over(plan):
                        return False
                    if self._fits(nbytes):
                        self._count(nbytes)
                        return True
                    victim = self._victim(plan)
                    if victim is None:
                        if not (plan or starves) and time.monotonic() - start > _PATIENCE_SECONDS:
                            starves = 1
                            self._starving += 1
                        self._changed.wait(_PATIENCE_SECONDS / 4)
                        continue
                self._finish_eviction(victim)
        finally:
            with self._changed:
                self._starving -= starves

    def _leased(self, nbytes: int, plan: int) -> list[Any] | None:
        """Takes bytes of the pool; returns the leases, or `None` if the plan is over.

        A use joins the pool's queue once there is nothing more to evict; a plan asks now and then, so that no step
        stands behind what nobody needs yet.
        """
        leases: list[Any] = []
        request: PoolRequest | None = None
        try:
            while True:
                with self._changed:
                    if self._is_over(plan):
                        return None
                    if request.answer() if request is not None else self._lease(nbytes, leases):
                        return leases if request is None else request.taken()
                    victim = self._victim(plan)
                    if victim is None:
                        if request is None and not plan:
                            request = PoolRequest(self._pool, {self._resource: nbytes}, self._changed)
                        else:
                            self._changed.wait(_GLANCE_SECONDS if plan else _PATIENCE_SECONDS / 4)
                        continue
                self._finish_eviction(victim)
        finally:
            if request is not None:
                request.withdraw()

    def _is_over(self, plan: int) -> bool:
        """Whether a plan has given way to another; for a use, whether there is nothing to use any more."""
        self._refuse_if_closed()
        return bool(plan) and plan != self._plan_number

    def _fits(self, nbytes: int) -> bool:
        return self.budget_bytes is None or self._bytes + nbytes <= self.budget_bytes

    def _grow(self, nbytes: int, leases: list[Any], plan: int) -> bool:
        """Takes more room for a model that was just loaded, if that needs no waiting."""
        while True:
            with self._changed:
                if self._fits(nbytes) and self._lease(nbytes, leases):
                    self._count(nbytes)
                    return True
                victim = self._victim(plan)
            if victim is None:
                return False
            self._finish_eviction(victim)

    def _lease(self, nbytes: int, leases: list[Any]) -> bool:
        if self._pool is None or not nbytes:
            return True
        lease = self._pool.try_acquire({self._resource: nbytes}, name="models")
        if lease is not None:
            lease.hand_over()  # it is the model's; the thread that loads may wait for leases of its own
            leases.append(lease)
        return lease is not None

    def _count(self, nbytes: int) -> None:
        self._bytes += nbytes
        self._peak = max(self._peak, self._bytes)

    def _give_back(self, nbytes: int, leases: list[Any]) -> None:
        for lease in leases:
            lease.release()
        with self._changed:
            self._bytes -= nbytes
            self._changed.notify_all()

    def _victim(self, plan: int) -> Model | None:
        """Takes out the least recently used model that may go; for a plan, not what comes before in the same plan."""
        for key, model in self._models.items():
            if not model.pins and not (plan and model.plan == plan):
                del self._models[key]
                self._evictions += not self._is_closed
                return model
        return None

    def _finish_eviction(self, model: Model) -> None:
        """Closes a model that was taken out; its bytes count until then."""
        call, model.call = model.call, evicted
        close_model(model.skill, call)
        del call
        self._give_back(model.nbytes, model.leases)

    # ── ahead of use ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prefetch(self, models: Iterable[tuple[Skill, Setup]]) -> None:
        """Loads models in this order in a thread of its own; returns at once.

        It evicts nothing that is in use and nothing that comes earlier in the same order and was not used yet: where
        there is no room it waits for uses to end. A newer call takes the place of what an older one has not begun.
        A load that raises is skipped; the use of that model tries again and tells.

        Args:
            models: Skills with their setups, in the order in which they will be used; those with `call` are ignored.
        """
        wanted = [(skill, setup) for skill, setup in models if skill.call is None]
        with self._changed:
            if self._is_closed or all((id(skill.load), setup) in self._models for skill, setup in wanted):
                return
            self._plan_number += 1
            for skill, setup in wanted:
                if (model := self._models.get((id(skill.load), setup))) is not None and not model.pins:
                    model.plan = self._plan_number
            self._plan = deque(wanted)
            self._changed.notify_all()
            if self._prefetcher is None:
                self._prefetcher = threading.Thread(target=self._work_ahead, name="minerua-prefetch", daemon=True)
                self._prefetcher.start()

    def _work_ahead(self) -> None:
        while True:
            with self._changed:
                if not self._plan or self._is_closed:
                    self._prefetcher = None
                    return
                skill, setup = self._plan.popleft()
                key, plan = (id(skill.load), setup), self._plan_number
            try:
                self._fetch(key, skill, setup, plan)
            except Exception:  # noqa: BLE001 - counted as a failure; whoever uses the model loads it again and is told
                continue

    def _fetch(self, key: _Key, skill: Skill, setup: Setup, plan: int) -> None:
        """Loads one model of a plan unless it is there.

        Nobody waits for this load before there is room for it: a use of the same model may evict what the plan spares.
        """
        while True:
            with self._changed:
                if key in self._models or key in self._loads:
                    return
            leases = self._reserve(skill, known := self._size(key, skill), plan)
            if leases is None:
                return
            with self._changed:
                load = None if key in self._models or key in self._loads else Load()
                if load is not None:
                    self._loads[key] = load
            if load is None:
                self._give_back(known, leases)
            elif self._load(key, skill, setup, load, plan=plan, leases=leases) is not None:
                return

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> ResidencyStatistics:
        """Returns counts of one moment."""
        with self._changed:
            pinned = sum(model.pins > 0 for model in self._models.values())
            return ResidencyStatistics(
                self._hits,
                self._load_count,
                self._prefetches,
                self._evictions,
                self._failures,
                len(self._models),
                pinned,
                self._bytes,
                self._peak,
                self._wait_seconds,
            )

    def close(self) -> None:
        """Closes all models, waits for those in use and for loads under way; later uses are refused."""
        with self._changed:
            self._is_closed = True
            self._plan.clear()
            self._changed.notify_all()
            prefetcher = self._prefetcher
        if prefetcher is not None:
            prefetcher.join()
        while True:
            with self._changed:
                victim = self._victim(0)
                if victim is None:
                    if not self._models and not self._loads:
                        return
                    self._changed.wait()
                    continue
            self._finish_eviction(victim)

    def __enter__(self) -> ModelResidency:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
