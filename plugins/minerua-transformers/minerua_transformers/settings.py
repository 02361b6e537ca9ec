"""What a run file, a chain or a caller can set of a language model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from minerua.settings import Settings as Told

DTYPES = ("auto", "float32", "bfloat16", "float16")
CHATS = ("auto", "template", "plain")


@dataclass(frozen=True)
class Settings:
    """How a language model answers.

    Args:
        path: Folder or hub name with configuration and tokenizer; `None`: the folder of the run's base.
        tokenizer: The same for the tokenizer alone.
        max_new_tokens: The longest answer, in tokens.
        batch_size: Rows of a batch; `None`: 32, and 256 for models below 100 million parameters. Answers do not depend
            on it, but for rounding.
        threads: How many threads the processor computes with; `None`: torch decides. For a small model, or where cores
            are shared, one is fastest.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1` and so on.
        dtype: What is computed in; `auto`: what most bytes of the base are stored in.
        chat: `auto`: the tokenizer's chat template for lists of messages, where it has one, else the plain form;
            `template`: texts too become a message of the user; `plain`: never the template.
        system: Stands at the head of every conversation that has no system message of its own.
        temperature: 0 is greedy.
        top_p: The smallest share of probability that is drawn from.
        top_k: How many tokens are drawn from; 0: all.
        seed: Of the draws.
        stop: Texts that end an answer; they are no part of it.
        context: The most tokens of prompt and answer together; `None`: the model's own limit.
    """

    path: str | None = None
    tokenizer: str | None = None
    max_new_tokens: int = 256
    batch_size: int | None = None
    threads: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: str = "auto"
    system: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    context: int | None = None


SETTINGS = tuple(field.name for field in fields(Settings))
SPEED = ("batch_size", "threads", "device")
"""Settings that change how fast answers come, and nothing else but the last bits of a sum."""


def read_settings(told: Told) -> Settings:
    """Returns the settings of a language model, with defaults for what is missing or wrong; faults stay in `told`."""
    device = told.text("device", "auto")
    fault = device_fault(device)
    if fault:
        told.fault(fault)
    return Settings(
        path=told.text("path", None),
        tokenizer=told.text("tokenizer", None),
        max_new_tokens=told.whole("max_new_tokens", 256),
        batch_size=told.whole("batch_size", None),
        threads=told.whole("threads", None),
        device=device,
        dtype=told.choice("dtype", DTYPES, "auto"),
        chat=told.choice("chat", CHATS, "auto"),
        system=told.text("system", None),
        temperature=told.number("temperature", 0.0, least=0),
        top_p=told.number("top_p", 1.0, least=1e-6, most=1),
        top_k=told.whole("top_k", 0, least=0),
        seed=told.whole("seed", 0, least=0),
        stop=told.texts("stop", ()),
        context=told.whole("context", None, least=2),
    )


def device_fault(name: str) -> str | None:
    """Returns what is wrong with a device's name, or `None`: that it is none, or that this machine lacks it."""
    if name in ("auto", "cpu"):
        return None
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return f"device is {name!r:.40}; expected auto, cpu, or a device as torch names it, such as cuda:0"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return f"device {name!r:.40} cannot be had on this machine: {str(error).splitlines()[0]:.160}"
    return "device 'meta' holds no numbers; name another" if device.type == "meta" else None
