"""A run in words: the sentences at the top of a report, and the plain table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minerua.report.intervals import Interval
from minerua.report.preflight import Pair, Preflight
from minerua.report.replay import Child
from minerua.report.tables import Row, Summary

MEAN_ROWS = ("mean", "average", "mean-merge", "mean merge")
"""Names under which a run may keep the plain mean of its experts in the final table."""

PAIRS = 10
"""Pairs of experts that a terminal shows; of more than five experts the least similar ones."""


def percent(score: float | None) -> str:
    """Returns a fraction as a percentage with one decimal, without the sign; a dash where there is none.

    Example:
        >>> percent(0.8365), percent(None)
        ('83.7', '–')
    """
    return "–" if score is None else f"{100 * score:.1f}"


def points(difference: float) -> str:
    """Returns a difference of two fractions in percentage points, with its sign.

    Example:
        >>> points(0.0512), points(-0.04), points(-0.0001)
        ('+5.1', '−4.0', '0.0')
    """
    text = f"{abs(100 * difference):.1f}"
    return text if float(text) == 0 else ("+" if difference > 0 else "−") + text


def interval_words(interval: Interval) -> str:
    """Returns an interval of a score as `low–high`, in percent."""
    return f"{percent(interval.lower)}–{percent(interval.upper)}"


def lead_words(interval: Interval) -> str:
    """Returns an interval of a difference as `low to high`, in percentage points."""
    return f"{points(interval.lower)} to {points(interval.upper)}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun.

    Example:
        >>> counted(1, "task"), counted(1200, "child", "children")
        ('1 task', '1,200 children')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def sentences(summary: Summary) -> tuple[str, ...]:
    """Returns an honest account of the run in a few sentences: what was done, what came out, how sure that is."""
    return tuple(_sentences(summary))


def _sentences(summary: Summary) -> Iterable[str]:
    failed = sum(child.failure is not None for child in summary.children)
    yield (
        f"{counted(len(summary.experts), 'expert')} on {counted(len(summary.tasks), 'task')}, "
        f"{counted(len(summary.seeds), 'seed')}, {counted(summary.evaluations, 'evaluation')}"
        + (f", of which {failed} failed." if failed else ", none failed.")
    )
    if summary.unfinished:
        yield f"The run is unfinished: its journal lacks {_listed(summary.unfinished)}."
    chosen = summary.row(summary.chosen)
    if chosen is None:
        yield from _without_rows(summary)
    elif chosen.mean is None:
        yield f"The model “{chosen.name}” could not be scored on the test items."
    else:
        yield from _result(summary, chosen, chosen.mean)


def _without_rows(summary: Summary) -> Iterable[str]:
    best = summary.best
    if best is not None:
        yield (
            f"So far {_who(best)} is best: {percent(best.mean)} % on average over the tasks. That is "
            "measured on the items that evolution optimised, and tends to be too high; no test item has been used."
        )


def _who(child: Child) -> str:
    names = {"seed": f"the seed “{child.label}”", "merge": f"the merge “{child.label}”"}
    return names.get(child.origin, f"child {child.label}")


def _identity(summary: Summary, chosen: Row) -> Iterable[str]:
    best = summary.best
    if best is None or best.digest != chosen.digest:
        return
    if best.origin == "seed":
        yield f"It is {_who(best)}: no child was chosen over it."
    elif best.label != chosen.name:
        yield f"It is {_who(best)}."


def _result(summary: Summary, chosen: Row, mean: Interval) -> Iterable[str]:
    count = sum(splits.get("test", 0) for splits in summary.items.values())
    on = f"On {counted(count, 'test item')}, which evolution never saw," if count else "On the test items"
    yield (
        f"{on} “{chosen.name}” scores {percent(mean.mean)} % on average over the tasks "
        f"(95 % interval {interval_words(mean)})."
    )
    yield from _identity(summary, chosen)
    for rival, role in _rivals(summary, chosen):
        yield from _comparison(chosen, mean, rival, role)


def _rivals(summary: Summary, chosen: Row) -> list[tuple[Row, str]]:
    """The rows that the chosen one has to be better than: what evolution started from, the experts, their mean."""
    scored = [row for row in summary.rows if row.mean is not None and row is not chosen]
    means = [row for row in scored if row.name.lower() in MEAN_ROWS]
    merges = {seed.digest: seed.mean or 0.0 for seed in summary.seeds if not seed.expert}
    starts = [row for row in scored if row.digest in merges and row not in means]
    starts.sort(key=lambda row: -merges[row.digest])
    experts = [row for row in scored if row.expert]
    roles = (
        (starts, "The merge that was best on search before evolution,"),
        (experts, "The best expert,"),
        (means, "The plain mean of the experts,"),
    )
    return [(rows[0], role) for rows, role in roles if rows]


def _comparison(chosen: Row, mean: Interval, rival: Row, role: str) -> Iterable[str]:
    if rival.mean is None or rival.lead is None:
        return
    overlap = "overlap" if mean.overlaps(rival.mean) else "do not overlap"
    yield (
        f"{role} “{rival.name}”, scores {percent(rival.mean.mean)} % ({interval_words(rival.mean)}); "
        f"the two intervals {overlap}. {verdict(chosen.name, rival.lead)}"
    )


def verdict(name: str, lead: Interval) -> str:
    """Returns what a paired difference allows to be said, in one sentence.

    Args:
        name: The model that is compared.
        lead: How far it is ahead on the same items.

    Example:
        >>> verdict("best", Interval(0.05, 0.01, 0.09))
        'Item by item, “best” is ahead by 5.0 points (+1.0 to +9.0).'
    """
    size = percent(abs(lead.mean))
    if lead.lower == lead.mean == lead.upper:
        return "The two are one and the same model."
    if lead.lower > 0:
        return f"Item by item, “{name}” is ahead by {size} points ({lead_words(lead)})."
    if lead.upper < 0:
        return f"Item by item, “{name}” is behind by {size} points ({lead_words(lead)})."
    return (
        f"Item by item, the difference is {points(lead.mean)} points ({lead_words(lead)}): "
        "these items cannot tell the two apart."
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# ── for a terminal ───────────────────────────────────────────────────────────────────────────────────────────────────


def table_text(summary: Summary) -> str:
    """Returns the report as plain aligned text: the sentences, the final table, the archives, the failures."""
    parts = ["\n".join(map(_line, sentences(summary)))]
    if summary.rows:
        parts.append(_aligned(_final_head(summary), [_final_cells(row, summary) for row in summary.rows]))
        parts.append(_line(f"Scores in percent, 95 % intervals in brackets; lead: “{summary.chosen}” minus this row."))
    if summary.archives:
        parts.append(_aligned(["archive", "elites", "coverage %", "QD score", "best"], _archive_cells(summary)))
    if summary.failures:
        parts.append("\n".join(["failures", *(f"  {len(g.who)} × {_line(g.reason)}" for g in summary.failures)]))
    return "\n\n".join(parts) + "\n"


def _final_head(summary: Summary) -> list[str]:
    return ["model", *map(_line, summary.tasks), "mean", "", "search", "select", "lead", ""]


def _final_cells(row: Row, summary: Summary) -> list[str]:
    tasks = ["–"] * len(summary.tasks) if row.tasks is None else [percent(task.mean) for task in row.tasks]
    mean = ["–", ""] if row.mean is None else [percent(row.mean.mean), f"[{interval_words(row.mean)}]"]
    lead = ["", ""] if row.lead is None else [points(row.lead.mean), f"[{lead_words(row.lead)}]"]
    return [_line(row.name), *tasks, *mean, percent(row.search), percent(row.select), *lead]


def _archive_cells(summary: Summary) -> list[list[str]]:
    return [
        [
            _line(summary.tasks[archive.task]),
            str(archive.stats.num_elites),
            percent(archive.stats.coverage),
            f"{archive.stats.qd_score:.2f}",
            percent(archive.stats.obj_max),
        ]
        for archive in summary.archives
    ]


def preflight_text(found: Preflight) -> str:
    """Returns what is known before a run as plain aligned text: the pairs of experts, what s is, the concerns."""
    shown = found.pairs
    if len(shown) > PAIRS:
        shown = tuple(sorted(shown, key=lambda pair: 2.0 if pair.similarity is None else pair.similarity)[:PAIRS])
    lines = [
        _aligned(["before the run", "s", "cosine", "norm ratio"], [[_line(c) for c in pair_cells(p)] for p in shown])
    ]
    if len(shown) < len(found.pairs):
        lines.append(
            f"and {counted(len(found.pairs) - len(shown), 'pair')} more, of more similar experts: see the report"
        )
    lines.append(f"s: {similarity_words(found)}")
    return "\n".join([*lines, *map(_line, found.concerns)]) + "\n"


def pair_cells(pair: Pair) -> list[str]:
    """Returns a pair's names, s, cosine and norm ratio as text; a dash where a number is unknown."""
    return [" – ".join(pair.experts), *map(_hundredths, (pair.similarity, pair.cosine, pair.norm_ratio))]


def _hundredths(value: float | None) -> str:
    if value is None:
        return "–"
    text = f"{abs(value):.2f}"
    return f"−{text}" if value < 0 < float(text) else text


def similarity_words(found: Preflight) -> str:
    """Returns what s is and over how many matrices."""
    whole = found.matrices == found.matrices_in_all
    over = counted(found.matrices, "matrix", "matrices") + ("" if whole else f" of {found.matrices_in_all:,}")
    return f"how alike two experts' singular values are, over {over}; a hint, no proof."


def _line(text: str) -> str:
    """Text from a journal on one line and without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with names flush left and numbers flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if not k else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
