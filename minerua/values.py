"""The vocabulary: frozen values that travel between the rooms.

Nothing here imports torch or numpy, so that `import minerua` and the plugin commands start at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from minerua.errors import ConfigError
from minerua.exhibits import Exhibit as Exhibit

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

SPLITS = ("search", "select", "test")
"""The three disjoint parts of a task's items: evolution sees the first, the choice of the final model the second,
only the report the third."""


# ── what travels along the road ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its values.

    Args:
        name: The tensor's name in its checkpoint, for example `"model.layers.0.mlp.up_proj.weight"`.
        shape: Its extents; a `str` stands for an extent known only at run time, such as `"batch"`.
        dtype: numpy's name of the element type: `"float32"`, `"float16"`, `"bfloat16"`, `"int64"` and so on.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Genome:
    """An individual: the cores of all its task vectors, end to end in one flat array.

    What the numbers mean is known to the `Subspace` whose digest stands in `subspace`: for each weight matrix a core
    (R × R'), for each smaller tensor one coefficient per expert. A genome is immutable; its digest is its name.

    Args:
        subspace: Digest of the subspace that gives the numbers their meaning.
        values: Shape (size,), float32 (float64 for a subspace of that dtype), contiguous, read-only.
    """

    subspace: str
    values: np.ndarray

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that name this genome: SHA-256 of the subspace and the values' bytes, cut to half.

        Of the safe digests SHA-256 is the fastest where processors compute it, three times BLAKE2b here.
        """
        import hashlib  # with it comes OpenSSL, which `plugins list` does not need

        digest = hashlib.sha256(self.subspace.encode())
        digest.update(self.values.data)
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class TaskScore:
    """What one model achieved on the items of one task.

    Args:
        outcomes: One number in [0, 1] per item, in the order of the split's items.
    """

    outcomes: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many items were evaluated."""
        return len(self.outcomes)

    @cached_property
    def mean(self) -> float:
        """The mean outcome, in [0, 1]: the task's score."""
        return sum(self.outcomes) / len(self.outcomes)


@dataclass(frozen=True)
class Scores:
    """What one model achieved on every task, item by item.

    Args:
        tasks: Task name → its score, in the order of the run's tasks.
    """

    tasks: Mapping[str, TaskScore]

    @property
    def means(self) -> tuple[float, ...]:
        """One mean outcome per task, in the order of the run's tasks."""
        return tuple(score.mean for score in self.tasks.values())

    @property
    def mean(self) -> float:
        """The mean of the tasks' means: every task counts the same, however many items it has."""
        return sum(self.means) / len(self.means)


@dataclass(frozen=True)
class Failure:
    """A model that could not be scored: a value like any other, so that the run goes on.

    Args:
        reason: What happened and where, in one line.
    """

    reason: str


@dataclass(frozen=True)
class Elite:
    """The occupant of one cell of an archive.

    Args:
        id: Number of the child in its run, seeds included; later children have larger numbers.
        digest: Name of its genome.
        means: Shape (K,); its mean outcome per task, in the order of the run's tasks, on the search split.
        cell: The cell's position: one bin index per behaviour characteristic.
    """

    id: int
    digest: str
    means: tuple[float, ...]
    cell: tuple[int, ...]


# ── what plugins provide ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Setup:
    """How a plan wants a skill to be loaded.

    Args:
        threads: How many threads one call may use; `None` leaves it to the skill.
        shared_threads: Whether its calls take their threads from one pool that all skills of its kind share.
        device: Where it runs: `"cpu"`, `"cuda:0"` and so on.
    """

    threads: int | None = None
    shared_threads: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class SkillContext:
    """What a skill that is made from settings may look at.

    Args:
        folder: Where relative paths in the settings begin: the folder of the chain's file.
        models: Model name → how its weights become something that can be called.
    """

    folder: Path
    models: Mapping[str, ModelSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class RunContext:
    """What a model kind or an evaluator that is made from settings may look at.

    Args:
        folder: Where relative paths in the settings begin: the folder of the run file.
        base: The checkpoint that all experts share, as the run file names it: a file or a folder; `None` where there
            is none.
        workers: How many items an evaluator may work on at the same time. No outcome depends on it.
    """

    folder: Path
    base: Path | None = None
    workers: int = 1


@dataclass(frozen=True, eq=False)
class JoinedStep:
    """One of several neighbouring steps that become a single skill.

    Args:
        name: The step's name in its chain.
        skill: Its skill.
        inputs: Input name → where it comes from: `(step, output)` with another of the joined steps, or `(None, name)`,
            where `name` is the input of the joined skill that it becomes.
        outputs: Which of its outputs are needed outside; the joined skill calls them `"<step>_<output>"`.
    """

    name: str
    skill: Skill
    inputs: Mapping[str, tuple[str | None, str]]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Skill:
    """A named ability: a callable with described inputs and outputs.

    Exactly one of `call`, `load` and `configure` is given. Arrays arrive as read-only views; a skill that changes one
    makes a copy.

    Args:
        name: Lower case, words joined by `-`; unique among all skills.
        call: The ability; takes the inputs by keyword, returns a mapping with the outputs. May be a coroutine function,
            which is awaited, or a generator function, sync or async: what it yields are partial outputs for whoever
            streams, the last of them is the result.
        inputs: Input name → a Python type, or a `TensorSpec` for arrays. The same name of an extent, such as
            `"batch"`, means the same count in all inputs and outputs of one call.
        outputs: Output name → the same.
        version: Changes whenever the results may; part of every cache key.
        load: `load(setup)` reads a model and returns what `call` would be; called once per `Setup`, and again after
            the model was evicted.
        configure: `configure(settings, context)` returns the skill that the settings of a step describe, with `call` or
            `load`; for families of skills, such as the models of a file format.
        optional: The inputs that a call can do without.
        resources: Resource name → what one call holds of it, such as `{"cpu": 2, "host_bytes": 1 << 30}`.
        pure: Whether the same inputs give the same outputs and nothing else happens: such a call may be left out,
            shared and cached.
        batchable: Whether calls can be made one by joining all arrays along their first axis, and parted again.
        thread_safe: Whether two threads may call it at a time.
        setups: The setups a plan may choose from; the first is the default.
        loaded_bytes: What the loaded skill keeps in memory; `None` lets it be measured.
        join: `join(steps)` makes one skill of neighbours whose `join` is the same function; takes `JoinedStep`s in the
            order in which they run; returns `None` where these cannot be joined.
    """

    name: str
    call: Callable[..., Any] | None = None
    inputs: Mapping[str, type | TensorSpec] = field(default_factory=dict)
    outputs: Mapping[str, type | TensorSpec] = field(default_factory=dict)
    version: str = "1"
    load: Callable[[Setup], Callable[..., Any]] | None = None
    configure: Callable[[Mapping[str, Any], SkillContext], Skill] | None = None
    optional: tuple[str, ...] = ()
    resources: Mapping[str, int] = field(default_factory=dict)
    pure: bool = False
    batchable: bool = False
    thread_safe: bool = True
    setups: tuple[Setup, ...] = (Setup(),)
    loaded_bytes: int | None = None
    join: Callable[[Sequence[JoinedStep]], Skill | None] | None = None


@dataclass(frozen=True)
class OptimizerSpec:
    """A named optimizer for learning.

    Args:
        name: Lower case, words joined by `-`; unique among all optimizers.
        build: `build(parameters, **settings)` returns a `torch.optim.Optimizer`; `parameters` are parameter groups:
            dictionaries with `params` and settings of their own, such as `weight_decay`. A setting that it does not
            know raises `TypeError`, as Python does.
    """

    name: str
    build: Callable[..., Any]


@dataclass(frozen=True)
class LossSpec:
    """A named loss for learning.

    Args:
        name: Lower case, words joined by `-`; unique among all losses.
        call: `call(predictions, targets, **settings)` returns a scalar tensor that can be differentiated: the mean over
            what `count` counts.
        count: `count(targets, **settings)` returns how many terms the mean is over, such as the tokens that are not
            ignored, or the sum of their weights; `None`: the first extent of the targets. A batch that is accumulated
            from parts weighs them so.
    """

    name: str
    call: Callable[..., Any]
    count: Callable[..., float] | None = None


def _unconfigured(*_: Any) -> Any:
    """Stands where a spec with `configure` has nothing to call."""
    raise ConfigError("this is a family that must be configured first: name its settings in the run file")


@dataclass(frozen=True)
class EvaluatorSpec:
    """A named task: items, and a way to score a model on them.

    Args:
        name: Lower case, words joined by `-`; unique among all evaluators. A run file may give a task a name of its
            own.
        items: `items()` returns the ids of all items, each a non-empty string, unique, in any order. Items that show
            the same thing in two tasks should share their id: an id falls into the same split everywhere.
        evaluate: `evaluate(model, ids, seed)` scores the callable that `ModelSpec.build` made on the named items and
            returns one outcome in [0, 1] per id, in that order. The same arguments give the same outcomes.
        inputs: `inputs(ids)` returns the unlabelled inputs of these items in the form that `ModelSpec.activations`
            takes, or `None` where the task has none to offer; activation-aware merging needs it.
        version: Changes whenever outcomes may; part of every cache key.
        configure: `configure(settings, context)` returns the evaluator that the settings of a task describe; for
            families of evaluators, such as those over files. Such a spec has no `items` and no `evaluate` of its own.
        evaluate_many: `evaluate_many(models, ids, seed)` scores several models at once, `ids[k]` for `models[k]`, and
            returns for each what `evaluate` would; `None`: one by one.
        exhibit: `exhibit(model, ids)` shows what a model makes of some items: returns an `Exhibit` of each, or of those
            that there is something to show of. The report has them, of a few test items and the chosen model. The same
            arguments show the same. `None`: nothing is shown.
    """

    name: str
    items: Callable[[], Sequence[str]] = _unconfigured
    evaluate: Callable[[Any, Sequence[str], int], Sequence[float] | np.ndarray] = _unconfigured
    inputs: Callable[[Sequence[str]], Any] | None = None
    version: str = "1"
    configure: Callable[[Mapping[str, Any], RunContext], EvaluatorSpec] | None = None
    evaluate_many: (
        Callable[[Sequence[Any], Sequence[Sequence[str]], int], Sequence[Sequence[float] | np.ndarray]] | None
    ) = None
    exhibit: Callable[[Any, Sequence[str]], Sequence[Exhibit]] | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """What a child adds to one tensor of the base: `left @ core @ right.T`, in float32.

    Args:
        core: Shape (R, R'), float32, the child's own; without bases the change itself, in the tensor's shape.
        left: Shape (m, R), float32, shared by all children of a population; `None` for the identity.
        right: Shape (n, R'), float32, shared; `None` for the identity.
    """

    core: np.ndarray
    left: np.ndarray | None = None
    right: np.ndarray | None = None


@dataclass(frozen=True)
class ModelSpec:
    """How weights become something that can be called.

    Args:
        name: Lower case, words joined by `-`; unique among all models.
        build: `build(tensors)` takes tensor name → numpy array (bfloat16 as `ml_dtypes.bfloat16`), borrowed and
            read-only for as long as the model is used, and returns what evaluators call.
        activations: `activations(model, inputs)` returns, for every linear layer in forward order, the name of its
            weight matrix (m × n) → the inputs that reached it, shape (rows, n), float32; or `None` if the model cannot
            tell.
        version: Changes whenever results may; part of every cache key.
        module: `module(**settings)` returns a fresh `torch.nn.Module` that can be learned: its `state_dict` has the
            names of the weights, `forward(inputs)` takes a batch of a dataset's inputs. `None`: it cannot be learned.
        configure: `configure(settings, context)` returns the model kind that settings describe. Such a spec has no
            `build` of its own; it may have a `module`.
        open: `open(base)` loads the base once, tensor name → array as for `build`, and returns `children(changes)`:
            one callable per child, of tensor name → `Change` each, which are valid until it is called again. With it
            several children are scored over one base. `None`: each child is built by itself.
    """

    name: str
    build: Callable[[Mapping[str, np.ndarray]], Any] = _unconfigured
    activations: Callable[[Any, Any], Mapping[str, np.ndarray]] | None = None
    version: str = "1"
    module: Callable[..., Any] | None = None
    configure: Callable[[Mapping[str, Any], RunContext], ModelSpec] | None = None
    open: Callable[[Mapping[str, np.ndarray]], Callable[[Sequence[Mapping[str, Change]]], Sequence[Any]]] | None = None


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """What a merge method that uses the model is given.

    Args:
        base: Tensor name → the base's array, read-only.
        experts: One mapping like it per expert, K in all.
        activations: `activations(tensors, k)` runs a model with these tensors on expert k's unlabelled inputs and
            returns, for every linear layer in forward order, the name of its weight matrix (m × n) → its inputs, shape
            (rows, n), float32.
    """

    base: Mapping[str, np.ndarray]
    experts: Sequence[Mapping[str, np.ndarray]]
    activations: Callable[[Mapping[str, np.ndarray], int], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class MergeTensors:
    """One tensor of all models: what a merge method with `uses="tensors"` is given.

    Args:
        name: The merged tensor's name.
        shape: Its extents; those of every source.
        number: What its random masks are drawn by: 32 bits of the digest of its name.
        experts: K sources (`minerua.kernels.Source`), in the recipe's order.
        base: The base's source, or `None`.
        parameters: Parameter name → its value for this tensor; a tuple of K values where it is set per model.
        semantics: `"mergekit"` or `"paper"`, where the two differ.
        seed: Of everything random; below 2^64.
        prepared: What the method's `prepare` returned; `None` without one.
    """

    name: str
    shape: tuple[int, ...]
    number: int
    experts: tuple[Any, ...]
    base: Any | None
    parameters: Mapping[str, Any]
    semantics: Literal["mergekit", "paper"] = "mergekit"
    seed: int = 0
    prepared: Any = None


@dataclass(frozen=True, eq=False)
class MergeTile:
    """A piece of one tensor of all models: what a merge method with `uses="tiles"` is given.

    Args:
        name: The tensor's name.
        experts: K arrays of shape (n,), float32, in the recipe's order.
        base: The base's array, like them; or `None`.
        parameters: Parameter name → its value for this tensor; a tuple of K values where it is set per model.
    """

    name: str
    experts: tuple[np.ndarray, ...]
    base: np.ndarray | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class MergeParameter:
    """A setting that a merge method takes from a recipe.

    Args:
        name: As recipes write it, such as `"density"`.
        kind: What values it takes.
        per_model: Whether every expert has its own value; otherwise one holds for all.
        default: Its value where a recipe is silent; `None` if a recipe must set it.
        fewest: The smallest number that is taken; `None` without a limit.
        most: The largest.
    """

    name: str
    kind: Literal["number", "flag", "text"] = "number"
    per_model: bool = False
    default: float | bool | str | None = None
    fewest: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class MergeMethodSpec:
    """A named way to merge several experts.

    Args:
        name: Lower case, words joined by `-`; unique among all merge methods. Recipes may write `_` for `-`.
        merge: What it takes depends on `uses`.
            `weights`: `merge(task_vectors, weights)`, one tensor at a time: K arrays of one shape (float32) and K
                numbers; returns the merged task vector, float32.
            `grams`: `merge(task_vectors, weights, grams)`, the same with K Gram matrices XᵀX (n × n, of the inputs that
                reach the layer in each expert), or `None` for a tensor that has none, such as a bias.
            `model`: `merge(inputs, weights)`, the whole model at once: a `MergeInputs` and K numbers; returns tensor
                name → merged task vector, float32, for every tensor that changes.
            `tiles`: `merge(tile)`, one piece of one tensor at a time: a `MergeTile`; returns the merged weights, shape
                (n,). For methods that look at each element by itself: memory stays bounded whatever the tensor's size.
            `tensors`: `merge(tensors, target)`, one tensor at a time: a `MergeTensors`, and a `minerua.kernels.Target`
                that takes the merged weights; returns what the passes of `minerua.kernels` return, or `None`.
        uses: `weights`, `grams`, `model`, `tiles` or `tensors`: what the method has to know.
        parameters: What recipes can set; the first three kinds take their weights from the parameter `weight`.
        base: Whether the experts need a common base. `ignored`: a base is one expert like the others.
        fewest: How many experts it takes at least; the base is not counted.
        most: How many at most; `None` without a limit.
        prepare: `prepare(all_tensors)` looks at all tensors before the first is merged: a sequence of `MergeTensors`,
            which it may go over more than once; for `tensors` only. What it returns arrives as `MergeTensors.prepared`.
        check: `check(parameters)` says what is wrong with the parameters of a tensor together, as a sentence, or
            returns `None`; called for every tensor before anything is read.
        whole: Whether `merge` holds whole tensors in memory, for `tensors`; the estimate of memory counts them then.
    """

    name: str
    merge: Callable[..., Any]
    uses: Literal["weights", "grams", "model", "tiles", "tensors"] = "weights"
    parameters: tuple[MergeParameter, ...] = (MergeParameter("weight", per_model=True, default=1.0),)
    base: Literal["required", "optional", "ignored"] = "required"
    fewest: int = 1
    most: int | None = None
    prepare: Callable[[Sequence[MergeTensors]], Any] | None = None
    check: Callable[[Mapping[str, Any]], str | None] | None = None
    whole: bool = False
