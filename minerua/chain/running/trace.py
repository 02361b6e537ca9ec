"""What ran, where, and how long: recorded as tuples while a run goes on, made readable when somebody asks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, final

Outcome = Literal["ok", "skipped", "failed", "timeout", "cancelled"]


class Span(NamedTuple):
    """One step of one run.

    Args:
        unit: Number of the plan's unit that it belongs to.
        step: The step's name.
        skill: The skill's name.
        where: Name of the thread, `"loop"` for a coroutine, `"process"` for a worker process, `"cache"`, or `"batch"`.
        start_ns: When it started, in nanoseconds of `time.perf_counter_ns`; waiting comes before.
        end_ns: When it ended.
        pool_wait_ns: How long it waited for what it holds of the pool.
        worker_wait_ns: How long it waited, once its inputs were there, until somebody took it up.
        attempts: How often it was tried; 0 if it did not have to be.
        is_cache_hit: Whether the result was known.
        batch_rows: How many rows it brought into a batch shared with other runs; 0 if it was not batched.
        outcome: `"ok"`, `"skipped"`, `"failed"`, `"timeout"` or `"cancelled"`.
    """

    unit: int
    step: str
    skill: str
    where: str
    start_ns: int
    end_ns: int
    pool_wait_ns: int = 0
    worker_wait_ns: int = 0
    attempts: int = 1
    is_cache_hit: bool = False
    batch_rows: int = 0
    outcome: Outcome = "ok"

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e9


@final
class Trace:
    """What happened in one run.

    Args:
        chain: The chain's name.
        run_id: Number of the run, unique for its executor.
        records: The fields of one `Span` each, in the order in which they ended.
        start_ns: When the run started, in nanoseconds of `time.perf_counter_ns`.
        end_ns: When it ended.
        epoch_ns: When it started, in nanoseconds since 1970.

    Example:
        >>> trace = Trace("look", 1, [(0, "see", "cnn", "main", 1_000, 3_000)], 0, 4_000, 0)
        >>> trace.spans[0].seconds
        2e-06
    """

    def __init__(
        self, chain: str, run_id: int, records: Sequence[tuple[Any, ...]], start_ns: int, end_ns: int, epoch_ns: int
    ) -> None:
        self.chain, self.run_id = chain, run_id
        self.start_ns, self.end_ns, self.epoch_ns = start_ns, end_ns, epoch_ns
        self._records = records

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """One per step that started or was skipped, by their start."""
        return tuple(sorted((Span(*record) for record in self._records), key=lambda span: (span.start_ns, span.unit)))

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return (self.end_ns - self.start_ns) / 1e9

    @cached_property
    def trace_id(self) -> str:
        """32 hexadecimal digits that no other run has."""
        return os.urandom(16).hex()

    # ── for programs ─────────────────────────────────────────────────────────────────────────────────────────────────

    def chrome(self) -> dict[str, Any]:
        """Returns the trace in the event format that Perfetto and Chrome's `about:tracing` load from a JSON file.

        Source: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
        """
        places = list(dict.fromkeys(span.where for span in self.spans))
        events = [_name_of_process(self.chain, self.run_id), *_names_of_threads(places, self.run_id)]
        events += [self._event(span, places.index(span.where)) for span in self.spans]
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def _event(self, span: Span, place: int) -> dict[str, Any]:
        return {
            "name": span.step,
            "cat": "step",
            "ph": "X",
            "ts": (span.start_ns - self.start_ns) / 1e3,
            "dur": (span.end_ns - span.start_ns) / 1e3,
            "pid": self.run_id,
            "tid": place,
            "args": _described(span),
        }

    def open_telemetry(self) -> dict[str, Any]:
        """Returns the trace as an OTLP/JSON request body, for `/v1/traces` of an OpenTelemetry collector.

        The run is the parent of its steps. Two calls for one trace return the same ids.

        Source: OpenTelemetry Protocol 1.x, JSON Protobuf encoding, https://opentelemetry.io/docs/specs/otlp
        """
        root = self._span_id("run")
        spans = [self._telemetry(f"chain {self.chain}", root, "", (self.start_ns, self.end_ns), {"chain": self.chain})]
        for number, span in enumerate(self.spans):
            times, facts = (span.start_ns, span.end_ns), {"step": span.step, **_described(span)}
            spans.append(self._telemetry(span.step, self._span_id(str(number)), root, times, facts))
        scope = {"scope": {"name": "minerua.chain"}, "spans": spans}
        service = {"attributes": _attributes({"service.name": "minerua"}, prefix="")}
        return {"resourceSpans": [{"resource": service, "scopeSpans": [scope]}]}

    def _span_id(self, name: str) -> str:
        return hashlib.sha256(f"{self.trace_id} {name}".encode()).hexdigest()[:16]

    def _telemetry(
        self, name: str, span_id: str, parent: str, times: tuple[int, int], facts: dict[str, Any]
    ) -> dict[str, Any]:
        outcome = facts.get("outcome", "ok")
        is_well = outcome in ("ok", "skipped")
        return {
            "traceId": self.trace_id,
            "spanId": span_id,
            **({"parentSpanId": parent} if parent else {}),
            "name": name,
            "kind": 1,  # internal
            "startTimeUnixNano": str(self.epoch_ns + times[0] - self.start_ns),
            "endTimeUnixNano": str(self.epoch_ns + times[1] - self.start_ns),
            "attributes": _attributes(facts, prefix="minerua."),
            "status": {"code": 1} if is_well else {"code": 2, "message": outcome},
        }

    # ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────

    def text(self) -> str:
        """Returns a table, one line per step; times in milliseconds from the start of the run."""
        titles = ("step", "skill", "where", "start", "took", "pool wait", "worker wait", "tries", "notes", "outcome")
        lines = [titles, *(self._line(span) for span in self.spans)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        head = f"chain {self.chain}, run {self.run_id}: {self.seconds * 1e3:.3f} ms"
        return "\n".join([head, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])

    def _line(self, span: Span) -> tuple[str, ...]:
        times = (span.start_ns - self.start_ns, span.end_ns - span.start_ns, span.pool_wait_ns, span.worker_wait_ns)
        notes = ("cache hit",) if span.is_cache_hit else (f"{span.batch_rows} rows",) if span.batch_rows else ("",)
        shown = (f"{time / 1e6:.3f}" for time in times)
        return (span.step, span.skill, span.where, *shown, str(span.attempts), *notes, span.outcome)


def _described(span: Span) -> dict[str, Any]:
    return {
        "skill": span.skill,
        "where": span.where,
        "unit": span.unit,
        "pool_wait_us": span.pool_wait_ns / 1e3,
        "worker_wait_us": span.worker_wait_ns / 1e3,
        "attempts": span.attempts,
        "cache_hit": span.is_cache_hit,
        "batch_rows": span.batch_rows,
        "outcome": span.outcome,
    }


def _name_of_process(chain: str, run_id: int) -> dict[str, Any]:
    return {"name": "process_name", "ph": "M", "pid": run_id, "tid": 0, "args": {"name": f"chain {chain}"}}


def _names_of_threads(places: Iterable[str], run_id: int) -> list[dict[str, Any]]:
    return [
        {"name": "thread_name", "ph": "M", "pid": run_id, "tid": number, "args": {"name": place}}
        for number, place in enumerate(places)
    ]


def _attributes(facts: dict[str, Any], *, prefix: str) -> list[dict[str, Any]]:
    return [{"key": f"{prefix}{key}", "value": _value(value)} for key, value in facts.items()]


def _value(value: object) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64 bits do not fit a number of JSON
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": str(value)}
