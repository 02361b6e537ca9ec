"""Chains by name: loaded, checked, planned, run and explained, with what they share."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import quote

from minerua.chain.graph import Graph
from minerua.chain.keeping.residency import ModelResidency
from minerua.chain.plan import ExecutionPlan
from minerua.chain.planning.explain import explain, mermaid
from minerua.chain.planning.optimizer import ChainOptimizer
from minerua.chain.planning.profile import Profile
from minerua.chain.planning.scheduling import loading_order
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.writing.chain import SkillChain
from minerua.errors import ChainError, unknown
from minerua.values import ModelSpec, Skill, SkillContext

if TYPE_CHECKING:
    from typing_extensions import Self

    from minerua.chain.keeping.cache import ContentCache
    from minerua.chain.running.executor import Result
    from minerua.chain.running.partials import Partial
    from minerua.kernels.pool import CancelToken, ResourcePool

PROFILE_SUFFIX = ".profile.json"


def profile_path(path: Path) -> Path:
    """Returns where the profile of a chain lies whose file is at a path: beside it."""
    return path.with_name(f"{path.stem}{PROFILE_SUFFIX}")


class _Managed:
    """A chain with what was made of it; nothing is made before it is asked for."""

    def __init__(self, chain: SkillChain, profile: Profile) -> None:
        self.chain, self.profile = chain, profile
        self.lock = threading.RLock()
        self.graph: Graph | None = None
        self.plan: ExecutionPlan | None = None
        self.executor: ChainExecutor | None = None

    def drop_executor(self, timeout_seconds: float | None = 10.0) -> None:
        """Closes what runs the chain; the next run opens it anew."""
        with self.lock:
            executor, self.executor = self.executor, None
        if executor is not None:
            executor.close(timeout_seconds=timeout_seconds)


@final
class SkillChainManager:
    """Keeps chains ready to run: a plan and an executor each; models, cache and pool shared by all. Safe for threads.

    Args:
        skills: Skill name → skill; a registry's catalog, or any mapping.
        models: Model name → how its weights become something that can be called; for skills made from settings.
        pool: Where steps hold what they need; the caller closes it.
        cache: Where results are kept by their content; without one nothing is.
        residency: Which models are in memory; the caller closes it. Default: all that were used, until `close`.
        profile_folder: Where profiles are kept, `<chain>.profile.json` each; default: beside the chain's file, and for
            chains made in Python nowhere.
        concurrency: How many runs of one chain are under way at a time, about; plans depend on it.
        observers: Objects that are told what runs do; see `ChainExecutor`.

    Example:
        >>> twice = Skill("twice", lambda x: {"y": 2 * x}, {"x": int}, {"y": int}, pure=True)
        >>> chain = SkillChain("four-times", inputs={"x": int})
        >>> chain.add_stage("twice", name="first"), chain.add_stage("twice", name="then", inputs={"x": "first.y"})
        ('first', 'then')
        >>> with SkillChainManager({"twice": twice}) as manager:
        ...     dict(manager.run(manager.load(chain), {"x": 3}))
        {'y': 12}
    """

    def __init__(
        self,
        skills: Mapping[str, Skill],
        *,
        models: Mapping[str, ModelSpec] | None = None,
        pool: ResourcePool | None = None,
        cache: ContentCache | None = None,
        residency: ModelResidency | None = None,
        profile_folder: str | Path | None = None,
        concurrency: int = 1,
        observers: Iterable[object] = (),
    ) -> None:
        self._skills, self._models = skills, dict(models or {})
        self._pool, self._cache = pool, cache
        self._residency = ModelResidency() if residency is None else residency
        self._owns_residency = residency is None
        self._profile_folder = None if profile_folder is None else Path(profile_folder)
        self._concurrency, self._observers = concurrency, tuple(observers)
        self._chains: dict[str, _Managed] = {}
        self._lock = threading.Lock()

    # ── chains ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, chain: SkillChain | str | Path, *, path: str | Path | None = None) -> str:
        """Takes up a chain; one of the same name is replaced. Returns its name.

        Args:
            chain: A chain, or the path of its file.
            path: The file that a chain comes from: beside it lies its profile. Default: the path, if that was given.

        Raises:
            ChainError: If the file cannot be read, or holds no chain.
        """
        if path is None and not isinstance(chain, SkillChain):
            path = chain
        taken = chain if isinstance(chain, SkillChain) else SkillChain.load(chain)
        managed = _Managed(taken, Profile(self._profile_path(taken.name, path)))
        with self._lock:
            before, self._chains[taken.name] = self._chains.get(taken.name), managed
        if before is not None:
            before.drop_executor()
        return taken.name

    def _profile_path(self, name: str, path: str | Path | None) -> Path | None:
        if self._profile_folder is not None:
            return self._profile_folder / f"{quote(name, safe=' ')}{PROFILE_SUFFIX}"  # a name is no path
        return None if path is None else profile_path(Path(path))

    @property
    def chains(self) -> tuple[str, ...]:
        """The names of all chains, in the order in which they were loaded."""
        with self._lock:
            return tuple(self._chains)

    def check(self, name: str) -> tuple[str, ...]:
        """Returns everything that is wrong with a chain; empty when all is well.

        Raises:
            ChainError: If no chain of this name was loaded.
        """
        chain = self._managed(name).chain
        return chain.check(self._skills, self._context(chain))

    def graph(self, name: str) -> Graph:
        """Returns a chain wired with its skills, as it is written.

        Raises:
            ChainError: If no chain of this name was loaded, or anything is wrong with it; lists all faults.
        """
        managed = self._managed(name)
        with managed.lock:
            if managed.graph is None:
                managed.graph = managed.chain.graph(self._skills, self._context(managed.chain))
            return managed.graph

    def _managed(self, name: str) -> _Managed:
        with self._lock:
            if name not in self._chains:
                raise ChainError(f"{unknown('chain', name, tuple(self._chains))}; load it first")
            return self._chains[name]

    def _context(self, chain: SkillChain) -> SkillContext:
        return SkillContext(chain.folder, self._models)

    # ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self, name: str, *, example: Mapping[str, Any] | None = None) -> ExecutionPlan:
        """Returns the plan that runs of a chain follow; the first call makes it, from what its profile knows.

        Args:
            name: The chain's name.
            example: Inputs like those to come, for the first call; default: those that were measured last.

        Raises:
            ChainError: If no chain of this name was loaded, or anything is wrong with it; lists all faults.
        """
        managed, graph = self._managed(name), self.graph(name)
        with managed.lock:
            if managed.plan is None:
                managed.plan = self._optimizer(managed).optimize(graph, example=example)
            return managed.plan

    def tune(self, name: str, examples: Sequence[Mapping[str, Any]], *, seconds: float = 20.0) -> ExecutionPlan:
        """Measures a chain on examples; returns the plan that was fastest, which runs follow from now on.

        No run of the chain may be under way. Its profile is written.

        Args:
            name: The chain's name.
            examples: The inputs of one run each.
            seconds: How long whole plans may be timed, about.

        Raises:
            ChainError: If no chain of this name was loaded, anything is wrong with it, or there is no example.
            StorageError: If the profile cannot be written.
        """
        managed, graph = self._managed(name), self.graph(name)
        managed.drop_executor()
        self._forget_models()
        plan = self._optimizer(managed).tune(graph, examples, seconds=seconds)
        with managed.lock:
            managed.plan = plan
        return plan

    def _forget_models(self) -> None:
        """Unloads what nobody else may use: threads of loaded models that spin would disturb what is timed."""
        with self._lock:
            in_use = any(managed.executor for managed in self._chains.values())
        if self._owns_residency and not in_use:
            self._residency.close()
            self._residency = ModelResidency()

    def _optimizer(self, managed: _Managed) -> ChainOptimizer:
        return ChainOptimizer(managed.profile, concurrency=self._concurrency, cache=self._cache is not None)

    def explain(self, name: str, *, as_mermaid: bool = False) -> str:
        """Returns what the plan of a chain does and why.

        Args:
            name: The chain's name.
            as_mermaid: A Mermaid flowchart instead of text.

        Raises:
            ChainError: If no chain of this name was loaded, or anything is wrong with it; lists all faults.
        """
        return (mermaid if as_mermaid else explain)(self.plan(name))

    def notes(self, name: str) -> tuple[str, ...]:
        """Returns what is to be said about a chain's profile: why it is not used, or what of it is out of date.

        Raises:
            ChainError: If no chain of this name was loaded, or anything is wrong with it; lists all faults.
        """
        profile = self._managed(name).profile
        return (*profile.notes, *profile.stale(self.graph(name)))

    # ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        /,
        *,
        outputs: Collection[str] | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Result:
        """Runs a chain once; see `ChainExecutor.run`, which says what it raises."""
        executor = self._executor(name)
        return executor.run(inputs, outputs=outputs, timeout_seconds=timeout_seconds, cancel=cancel)

    async def arun(
        self,
        name: str,
        inputs: Mapping[str, Any],
        /,
        *,
        outputs: Collection[str] | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Result:
        """Runs a chain once without blocking the event loop; see `ChainExecutor.arun`."""
        executor = self._executor(name)
        return await executor.arun(inputs, outputs=outputs, timeout_seconds=timeout_seconds, cancel=cancel)

    def stream(self, name: str, inputs: Mapping[str, Any], /, **options: Any) -> Iterator[Partial]:
        """Runs a chain once and yields outputs as they come; see `ChainExecutor.stream`."""
        return self._executor(name).stream(inputs, **options)

    def astream(self, name: str, inputs: Mapping[str, Any], /, **options: Any) -> AsyncIterator[Partial]:
        """Runs a chain once and yields outputs as they come, asynchronously; see `ChainExecutor.astream`."""
        return self._executor(name).astream(inputs, **options)

    def _executor(self, name: str) -> ChainExecutor:
        managed, plan = self._managed(name), self.plan(name)
        with managed.lock:
            if managed.executor is None:
                self._residency.prefetch(loading_order(plan))
                managed.executor = ChainExecutor(
                    plan, pool=self._pool, cache=self._cache, residency=self._residency, observers=self._observers
                )
            return managed.executor

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def close(self, *, timeout_seconds: float | None = 10.0) -> None:
        """Ends all executors and unloads the models; what the caller gave stays open.

        Args:
            timeout_seconds: How long to wait for steps in threads that do not stop; `None` for ever.
        """
        with self._lock:
            managed = list(self._chains.values())
        for one in managed:
            one.drop_executor(timeout_seconds)
        if self._owns_residency:
            self._residency.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
