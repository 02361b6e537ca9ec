"""Everything that a run needs, made and tried before anything is written; all faults in one message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minerua.errors import CheckpointError, LearningError, MineruaError, unknown
from minerua.learning.checkpoints import CheckpointManager
from minerua.learning.config import TrainingConfig
from minerua.learning.devices import DeviceManager
from minerua.learning.evaluator import ModelEvaluator, metric_faults
from minerua.learning.failures import explained, what_happened
from minerua.learning.loading import Loader
from minerua.learning.order import Order
from minerua.learning.parts import Parts
from minerua.learning.settings import with_numbers
from minerua.learning.state import to_tensor
from minerua.learning.stepping import Loss
from minerua.values import LossSpec, ModelSpec, OptimizerSpec, Skill
from minerua.weights import Checkpoint, open_checkpoint
from minerua.weights.adapter import BASE_KEY


@dataclass(frozen=True)
class Catalogs:
    """What names stand for.

    Args:
        models: Model name → spec.
        optimizers: Optimizer name → spec.
        losses: Loss name → spec.
        skills: Skill name → spec.
    """

    models: Mapping[str, ModelSpec]
    optimizers: Mapping[str, OptimizerSpec]
    losses: Mapping[str, LossSpec]
    skills: Mapping[str, Skill]


@dataclass(frozen=True)
class Prepared:
    """A run that could begin.

    Args:
        config: Its configuration.
        module: The model, on its device.
        optimizer: Over its parameters.
        loss: What is made small.
        training: The training split.
        validation: The validation split, or `None`.
        test: The test split, or `None`.
        devices: Where.
        evaluator: Measures.
        metadata: Texts for the headers of weights.
        base_digest: Of the checkpoint that learning begins with; empty without one.
        data_digest: Of the splits; empty where data has none.
        attached: The LoRA adapter; `None` without one.
        notes: What there is to say.
    """

    config: TrainingConfig
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    training: Loader
    validation: Loader | None
    test: Loader | None
    devices: DeviceManager
    evaluator: ModelEvaluator
    metadata: Mapping[str, str]
    base_digest: str
    data_digest: str = ""
    attached: Any = None
    notes: tuple[str, ...] = field(default=())

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def parts(self, checkpoints: CheckpointManager) -> Parts:
        """Returns what a trainer works with."""
        saved = None
        if self.attached is not None:
            learned = {name for name, p in self.module.named_parameters() if p.requires_grad}
            saved = frozenset(learned | {name for name, _ in self.module.named_buffers()}) & set(
                self.module.state_dict()
            )
        counts = {f"examples.{name}": loader.order.count for name, loader in self._splits() if loader is not None}
        return Parts(
            module=self.module,
            optimizer=self.optimizer,
            loss=self.loss,
            training=self.training,
            validation=self.validation,
            devices=self.devices,
            evaluator=self.evaluator,
            checkpoints=checkpoints,
            environment=environment(self.devices),
            identity={
                "base": self.base_digest,
                "data": self.data_digest,
                "processes": self.devices.processes,
                **counts,
            },
            saved=saved,
        )

    def _splits(self) -> tuple[tuple[str, Loader | None], ...]:
        return ("train", self.training), ("validation", self.validation), ("test", self.test)


def environment(devices: DeviceManager) -> dict[str, Any]:
    """Returns what bits depend on besides a configuration."""
    gpu = torch.cuda.get_device_name(devices.device) if devices.device.type == "cuda" else ""
    return {"torch": torch.__version__, "device": devices.device.type, "gpu": gpu, "threads": torch.get_num_threads()}


def prepare(config: TrainingConfig, catalogs: Catalogs, *, devices: DeviceManager, data: Any, folder: Path) -> Prepared:
    """Makes everything, and sends one batch through it.

    Args:
        config: The run's.
        catalogs: What its names stand for.
        devices: Where.
        data: The splits, or `None` for the section `data`.
        folder: Where relative paths start.

    Raises:
        LearningError: With every fault.
        ConfigError: If only the section `data` is wrong.
    """
    faults = name_faults(config, catalogs)
    splits, data_faults = _splits(config, catalogs, data, folder)
    faults += data_faults
    module, base, model_faults = _model(config, catalogs, folder)
    faults += model_faults
    if faults or module is None:
        raise LearningError("the run cannot begin", faults)
    attached = _attached(config, module)
    module = devices.place(module)
    loss = Loss(catalogs.losses[config.loss.name], with_numbers(config.loss.settings))
    digest = base.digest if base is not None else ""
    loaders = {
        name: _loader(config, getattr(splits, name), name, devices)
        for name in SPLITS
        if getattr(splits, name, None) is not None
    }
    prepared = Prepared(
        config=config,
        module=module,
        optimizer=_optimizer(config, catalogs, module),
        loss=loss,
        training=loaders["train"],
        validation=loaders.get("validation"),
        test=loaders.get("test"),
        devices=devices,
        evaluator=ModelEvaluator(loss, config.metrics, devices=devices),
        metadata={
            "minerua.model": config.model.name,
            "minerua.config": config.digest,
            **({BASE_KEY: digest} if digest else {}),
        },
        base_digest=digest,
        data_digest=str(getattr(splits, "digest", "")),
        attached=attached,
        notes=_notes(splits),
    )
    _try(prepared)
    return prepared


SPLITS = ("train", "validation", "test")


def name_faults(config: TrainingConfig, catalogs: Catalogs) -> list[str]:
    """Returns one fault for each name that stands for nothing."""
    looked_up: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("model", config.model.name, catalogs.models),
        ("loss", config.loss.name, catalogs.losses),
        ("optimizer", config.optimizer.name, catalogs.optimizers),
    )
    missing = [one for one in looked_up if one[1] not in one[2]]
    faults = [f"{kind}.name: {unknown(kind, name, list(known))}" for kind, name, known in missing]
    return [*faults, *metric_faults(config.metrics)]


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _splits(config: TrainingConfig, catalogs: Catalogs, data: Any, folder: Path) -> tuple[Any, list[str]]:
    if not hasattr(data, "train"):
        from minerua.learning.datasets import DatasetManager

        try:
            data = DatasetManager(config.data, catalogs.skills, folder, config.seed, dataset=data).prepare()
        except MineruaError as error:
            return None, [f"data: {error.message}", *(f"data: {fault}" for fault in error.faults)]
    return data, list(_size_faults(config, data))


def _size_faults(config: TrainingConfig, data: Any) -> list[str]:
    faults = []
    count = len(data.train) if data.train is not None else 0
    if count == 0:
        faults.append("data: the training split is empty; there is nothing to learn from")
    elif config.batch_size > count:
        faults.append(
            f"batch_size: {config.batch_size} is more than the {count} examples of the training split; "
            f"set it to {count} or less"
        )
    if getattr(data, "validation", None) is None and config.stopping.metric != "loss":
        faults.append(
            f"stopping.metric: {config.stopping.metric!r} is measured on the validation split, and there is none; "
            "give the data one, or compare by loss"
        )
    for name in SPLITS[1:]:
        split = getattr(data, name, None)
        if split is not None and len(split) == 0:
            faults.append(f"data: the {name} split is empty; leave it out, or give it rows")
    return faults


def _notes(splits: Any) -> tuple[str, ...]:
    report = getattr(splits, "report", None)
    return tuple(getattr(report, "notes", ()) or ())


def _loader(config: TrainingConfig, dataset: Any, name: str, devices: DeviceManager) -> Loader:
    is_training = name == "train"
    order = Order(
        count=len(dataset),
        batch_size=config.batch_size,
        seed=config.seed,
        accumulate=config.accumulate,
        rank=devices.rank,
        processes=devices.processes,
        shuffle=config.shuffle and is_training,
        drop_last=config.drop_last and is_training,
    )
    return Loader(dataset, order, workers=config.device.workers, pinned=devices.device.type == "cuda")


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _model(
    config: TrainingConfig, catalogs: Catalogs, folder: Path
) -> tuple[nn.Module | None, Checkpoint | None, list[str]]:
    """Returns the model with the base's weights, the base, and what is wrong with either."""
    spec, faults, base = catalogs.models.get(config.model.name), [], None
    if config.model.base is not None:
        try:
            base = open_checkpoint(folder / config.model.base)
        except CheckpointError as error:
            faults += [f"model.base: {error.message}", *(f"model.base: {fault}" for fault in error.faults)]
    if spec is None:
        return None, base, faults
    if spec.module is None:
        return (
            None,
            base,
            [*faults, f"model.name: {config.model.name!r} can be called but not learned: it has no module"],
        )
    try:
        module: nn.Module = spec.module(**config.model.settings)
    except Exception as error:  # noqa: BLE001  a plugin's function may raise anything
        return None, base, [*faults, f"model.settings: {config.model.name!r} cannot be made: {what_happened(error)}"]
    if base is not None:
        faults += _take_base(module, base)
    return module, base, faults


def _take_base(module: nn.Module, base: Checkpoint) -> list[str]:
    """Gives the model the base's weights; returns what does not fit."""
    tensors = module.state_dict()
    faults = [
        f"model.base: {base.path} lacks {name}, which the model has" for name in tensors if name not in base.specs
    ]
    faults += [
        f"model.base: {base.path} has {name}, which the model lacks" for name in base.specs if name not in tensors
    ]
    faults += [
        f"model.base: {name} has the shape {list(base.specs[name].shape)} in {base.path}, "
        f"the model has {list(one.shape)}"
        for name, one in tensors.items()
        if name in base.specs and tuple(base.specs[name].shape) != tuple(one.shape)
    ]
    if not faults:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(to_tensor(base.tensor(name)))
    return faults


def _attached(config: TrainingConfig, module: nn.Module) -> Any:
    if config.adapter is None:
        return None
    from minerua.learning.adapters import attach_lora

    adapter = config.adapter
    return attach_lora(
        module,
        rank=adapter.rank,
        alpha=adapter.alpha if adapter.alpha is not None else float(adapter.rank),
        targets=adapter.targets,
        dropout=adapter.dropout,
        seed=config.seed,
        rank_pattern=adapter.rank_pattern,
        alpha_pattern=adapter.alpha_pattern,
    )


def _optimizer(config: TrainingConfig, catalogs: Catalogs, module: nn.Module) -> torch.optim.Optimizer:
    section = config.optimizer
    try:
        built: torch.optim.Optimizer = catalogs.optimizers[section.name].build(
            _groups(config, module), lr=section.rate, **with_numbers(section.settings)
        )
    except MineruaError:
        raise
    except Exception as error:
        raise LearningError(f"optimizer.settings: {section.name!r} cannot be made: {what_happened(error)}") from error
    return built


def _groups(config: TrainingConfig, module: nn.Module) -> list[dict[str, Any]]:
    from minerua.learning.groups import parameter_groups

    section = config.optimizer
    return parameter_groups(
        module, weight_decay=section.weight_decay, no_decay=section.no_decay, rules=list(section.rules)
    )


def _try(prepared: Prepared) -> None:
    """Sends one batch through model and loss, so that what does not fit is said before anything is written."""
    training = prepared.training
    one = Loader(training.dataset, training.order)
    step = next(one.steps(0))
    was_training = prepared.module.training
    prepared.module.eval()
    try:
        with torch.no_grad():
            batch = step.batches[0]
            with prepared.devices.autocast():
                predictions = prepared.module(prepared.devices.moved(batch.inputs))
                value = prepared.loss.mean(predictions, prepared.devices.moved(batch.targets))
    except Exception as error:
        raise explained(error, step, prepared.config, prepared.devices, number=1) from error
    finally:
        prepared.module.train(was_training)
        prepared.devices.settle(prepared.module)
    if not isinstance(value, torch.Tensor) or value.dim():
        found = f"shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise LearningError(f"loss {prepared.loss.name!r} must return a tensor without dimensions, found {found}")
