"""The training file: what `minerua train` reads, validated with every fault at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from minerua.errors import ConfigError
from minerua.learning.data_config import DataConfig, faults_of
from minerua.learning.schedules import DEPENDS_ON_LENGTH, ScheduleConfig
from minerua.learning.sections import ByName, Real, Section, Whole, overlaid

EXPERT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What an expert may be called: its name becomes a folder's."""

FREE = ("experts", "keep", "logs", "save_every_steps", "device.workers", "data.cache", "data.check")
"""Keys that a run may change between two starts: no weight depends on them."""


class ModelConfig(Section):
    """What is learned.

    Args:
        name: The `ModelSpec` whose `module` makes it.
        settings: What `module` is called with.
        base: The checkpoint that learning begins with; relative paths start at the training file. Its digest is
            recorded in what is saved.
    """

    name: str
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)
    base: Path | None = None


class LossConfig(Section):
    """What is made small.

    Args:
        name: The `LossSpec`.
        settings: What it is called with besides predictions and targets.
    """

    name: str
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)


class OptimizerConfig(Section):
    """How weights are changed.

    Args:
        name: The `OptimizerSpec`.
        rate: The learning rate that the schedule starts from.
        weight_decay: Of every weight that is not excluded.
        no_decay: Kinds of weights without decay: `bias`, `norm`, or a pattern of names.
        rules: Groups of their own: mappings with `match`, a pattern of names, and the settings of the weights it finds.
        settings: What else `build` is called with.
    """

    name: str = "adamw"
    rate: Real = pydantic.Field(default=1e-3, gt=0)
    weight_decay: Real = pydantic.Field(default=0.0, ge=0)
    no_decay: tuple[str, ...] = ("bias", "norm")
    rules: tuple[dict[str, Any], ...] = ()
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)


class AdapterConfig(Section):
    """Learns a LoRA adapter in place of all weights.

    Args:
        rank: Of the factors.
        alpha: What the product is scaled by, times the rank; by default the rank itself, so that the scale is 1.
        targets: Which linear modules have factors: names, or patterns of them.
        dropout: The share of the adapter's inputs that is set to zero while it learns.
        rank_pattern: Pattern → the rank of the modules that it finds, by the end of their names; the first that finds
            one holds.
        alpha_pattern: Pattern → the alpha of the modules that it finds; the others are scaled as `alpha` says,
            whatever their rank.
    """

    rank: Whole = pydantic.Field(default=8, ge=1)
    alpha: Real | None = pydantic.Field(default=None, gt=0)
    targets: tuple[str, ...] = pydantic.Field(min_length=1)
    dropout: Real = pydantic.Field(default=0.0, ge=0, lt=1)
    rank_pattern: dict[str, Annotated[Whole, pydantic.Field(ge=1)]] = pydantic.Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[Real, pydantic.Field(gt=0)]] = pydantic.Field(default_factory=dict)

    @pydantic.field_serializer("rank_pattern", "alpha_pattern", when_used="json")
    def _in_order(self, patterns: dict[str, Any]) -> list[list[Any]]:
        """Keeps the order, which counts, where the keys of an object have none."""
        return [list(pair) for pair in patterns.items()]


class StoppingConfig(Section):
    """What is best, and when to stop.

    Args:
        metric: What evaluations are compared by: `loss`, or one of `metrics`.
        mode: `min` if smaller is better, `max` if larger is; by default what the metric's name says.
        patience: How many evaluations without improvement are put up with; `None`: never stop early.
        min_change: What counts as an improvement, at least.
        restore_best: Whether the final model is the best one rather than the last.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] | None = None
    patience: Whole | None = pydantic.Field(default=None, ge=1)
    min_change: Real = pydantic.Field(default=0.0, ge=0)
    restore_best: bool = True


class GuardConfig(Section):
    """What happens when a loss or a gradient is NaN or infinite, or a loss leaps.

    Args:
        policy: `stop` ends the run; `skip` leaves out the step; `rollback` goes on from the weights of the last regular
            checkpoint with the batches that follow; `off` looks at nothing.
        spike: A loss above the median of the last ones by that many robust deviations (1.4826 times the median absolute
            deviation) is one too; `None`: no loss is too high.
        window: How many losses the median is over.
        limit: After how many steps that were skipped or undone the run ends.
    """

    policy: Literal["stop", "skip", "rollback", "off"] = "stop"
    spike: Real | None = pydantic.Field(default=None, gt=0)
    window: Whole = pydantic.Field(default=64, ge=8, le=4096)
    limit: Whole = pydantic.Field(default=10, ge=1)


class DeviceConfig(Section):
    """Where and how numbers are computed.

    Args:
        name: `auto` (CUDA, else MPS, else the CPU), `cpu`, `cuda`, `cuda:1` and so on, `mps`.
        precision: Of the forward pass: `float32`, `bfloat16`, or `float16` with a scaled loss (CUDA only).
        strategy: How several processes share the work: `ddp` (each holds all weights) or `fsdp` (each holds a part).
        compile: Whether `torch.compile` makes the model faster first.
        deterministic: Whether only operations that give the same bits every time are used, where torch has them.
        threads: How many threads the CPU computes with; `None`: torch decides.
        workers: How many processes read rows ahead; no weight depends on it.
    """

    name: str = pydantic.Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    deterministic: bool = False
    threads: Whole | None = pydantic.Field(default=None, ge=1)
    workers: Whole = pydantic.Field(default=0, ge=0, le=256)


class TrainingConfig(Section):
    """A whole training run.

    Args:
        minerua: The file's format: 1.
        seed: Seed of everything random.
        model: What is learned.
        data: Where rows come from.
        loss: What is made small.
        optimizer: How weights are changed.
        schedule: How the rate changes.
        adapter: Learns a LoRA adapter in place of all weights.
        epochs: How often every example is seen.
        batch_size: Examples per step: of all processes and all accumulated parts together.
        accumulate: In how many parts each process goes through its share of a batch; saves memory, changes no result.
        clip_norm: The longest gradient; longer ones are shortened. `None`: as they are.
        shuffle: Whether each epoch has an order of its own.
        drop_last: Whether an incomplete last batch of an epoch is left out.
        metrics: What evaluations measure besides the loss.
        evaluate_every_steps: By default at the end of each epoch.
        save_every_steps: The same for checkpoints.
        keep: How many checkpoints stay.
        stopping: What is best, and when to stop.
        guard: What happens when a loss is NaN, infinite, or leaps.
        device: Where and how numbers are computed.
        logs: What is written beside the model: `csv` (steps and evaluations in two tables), `tensorboard`.
        experts: Name → what is different for it: several runs from one file, each in a folder of its own.
    """

    minerua: Annotated[Literal[1], pydantic.BeforeValidator(lambda value: None if value is True else value)] = 1
    seed: Whole = pydantic.Field(default=0, ge=0, lt=2**63)
    model: Annotated[ModelConfig, ByName]
    data: DataConfig = DataConfig()
    loss: Annotated[LossConfig, ByName]
    optimizer: Annotated[OptimizerConfig, ByName] = OptimizerConfig()
    schedule: Annotated[ScheduleConfig, ByName] = ScheduleConfig()
    adapter: AdapterConfig | None = None
    epochs: Whole = pydantic.Field(default=10, ge=1)
    batch_size: Whole = pydantic.Field(default=32, ge=1)
    accumulate: Whole = pydantic.Field(default=1, ge=1)
    clip_norm: Real | None = pydantic.Field(default=None, gt=0)
    shuffle: bool = True
    drop_last: bool = False
    metrics: tuple[str, ...] = ()
    evaluate_every_steps: Whole | None = pydantic.Field(default=None, ge=1)
    save_every_steps: Whole | None = pydantic.Field(default=None, ge=1)
    keep: Whole = pydantic.Field(default=2, ge=1)
    stopping: StoppingConfig = StoppingConfig()
    guard: GuardConfig = GuardConfig()
    device: DeviceConfig = DeviceConfig()
    logs: tuple[Literal["csv", "tensorboard"], ...] = ("csv",)
    experts: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)

    @pydantic.field_validator("experts")
    @classmethod
    def _names(cls, experts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        wrong = [name for name in experts if not EXPERT_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'")
        return experts

    @pydantic.model_validator(mode="after")
    def _fitting(self) -> TrainingConfig:
        if self.schedule.warmup_steps and self.schedule.warmup_fraction:
            raise ValueError("give warmup_steps or warmup_fraction, not both")
        known = ("loss", *self.metrics)
        if self.stopping.metric not in known:
            raise ValueError(
                f"stopping.metric {self.stopping.metric!r} is not measured; it is one of {', '.join(known)}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into accumulate = {self.accumulate} equal parts"
            )
        return self

    @classmethod
    def read(cls, content: Mapping[str, Any], *, where: str = "the training file") -> TrainingConfig:
        """Checks the content of a training file, its experts included.

        Args:
            content: Keys and values, as YAML holds them.
            where: What messages call it, such as its path.

        Raises:
            ConfigError: With one fault per mistake: its place, what was found, what to write instead.

        Example:
            >>> TrainingConfig.read({"model": "mlp", "loss": "cross-entropy"}).optimizer.name
            'adamw'
        """
        config, faults = cls._validated(content)
        experts = content.get("experts")
        for name, changes in experts.items() if isinstance(experts, Mapping) else ():
            if isinstance(changes, Mapping):
                own = [fault for fault in cls._validated(_of_expert(content, changes))[1] if fault not in faults]
                faults += [f"experts.{name}.{fault}" for fault in own]
        if config is None or faults:
            raise ConfigError(f"{where} cannot be used", faults)
        return config

    @classmethod
    def _validated(cls, content: Mapping[str, Any]) -> tuple[TrainingConfig | None, list[str]]:
        try:
            return cls.model_validate(dict(content)), []
        except pydantic.ValidationError as error:
            return None, faults_of(error, cls)

    def changed(self, **changes: Any) -> TrainingConfig:
        """Returns the configuration with some keys changed; a mapping changes keys inside a section.

        Raises:
            ConfigError: If the result is not valid.

        Example:
            >>> config = TrainingConfig(model="mlp", loss="cross-entropy")
            >>> config.changed(epochs=3, optimizer={"rate": 0.1}).optimizer.rate
            0.1
        """
        return type(self).read(
            overlaid(self.model_dump(exclude_unset=True), changes), where="the changed configuration"
        )

    def of_expert(self, name: str) -> TrainingConfig:
        """Returns the configuration of one of `experts`, without experts of its own."""
        return type(self).read(
            _of_expert(self.model_dump(exclude_unset=True), self.experts[name]), where=f"expert {name}"
        )

    def plain(self) -> dict[str, Any]:
        """Returns the file as JSON would hold it, defaults filled in."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name everything a result depends on."""
        text = json.dumps(self.binding(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def binding(self) -> dict[str, Any]:
        """Returns key → value of everything that a run may not change between two starts, one level deep."""
        free = {*FREE, *(() if self.schedule.name in DEPENDS_ON_LENGTH or self._warms_by_fraction else ("epochs",))}
        flat = dict(_flat(self.plain()))
        return {key: value for key, value in flat.items() if not any(_within(key, one) for one in free)}

    @property
    def _warms_by_fraction(self) -> bool:
        return self.schedule.warmup_fraction > 0

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether the metric that evaluations are compared by is better when it is smaller or larger."""
        larger_is_better = self.stopping.metric == "accuracy"
        return self.stopping.mode or ("max" if larger_is_better else "min")


def _of_expert(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return overlaid({key: value for key, value in content.items() if key != "experts"}, changes)


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _flat(content: Mapping[str, Any], place: str = "") -> list[tuple[str, Any]]:
    """Returns place → value for everything inside that is no mapping."""
    found: list[tuple[str, Any]] = []
    for key, value in content.items():
        here = f"{place}{key}"
        found += _flat(value, f"{here}.") if isinstance(value, Mapping) and value else [(here, value)]
    return found
