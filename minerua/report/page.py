"""The page: one HTML file with its style, pictures and a few lines of script, which asks the network for nothing."""

from __future__ import annotations

from importlib.resources import files

from minerua.report.ancestry import lineage_figure
from minerua.report.colours import classes, letter, task_class, variables
from minerua.report.curves import curve_figures
from minerua.report.exhibits import Exhibits, exhibits_section
from minerua.report.heat import archive_figure, shown_ids
from minerua.report.lineage import CAP
from minerua.report.markup import Markup, element, embedded_json, join
from minerua.report.replay import Child
from minerua.report.sections import failure_list, final_table, pair_table, settings
from minerua.report.tables import BEST_ROW, Summary
from minerua.report.words import counted, percent, sentences, similarity_words

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What a browser may do for this page: nothing that leaves it. Pictures are parts of its text."""


def render_page(summary: Summary, exhibits: Exhibits | None = None) -> str:
    """Returns a report as one HTML page, which works offline, in light and dark, from 400 pixels width.

    Text from the journal is escaped wherever it stands. The same summary gives the same bytes.

    Args:
        summary: What `summarise` returned.
        exhibits: What the chosen model makes of some items; passed over where they are another model's.
    """
    title = _title(summary)
    shown = _fitting(summary, exhibits)
    main = element("main", *_sections(summary, shown))
    footer = _footer(summary, "the journal alone" if shown is None else "the journal and what the tasks showed")
    return whole_page(title, _header(summary, title), main, footer, _script(summary))


def whole_page(title: str, *body: Markup) -> str:
    """Returns a page with the report's style, which asks the network for nothing.

    Args:
        title: What the browser shows; escaped.
        body: Its parts, in order.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", **{"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("title", f"{title} · minerua"),
        element("style", _style()),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n"


def _fitting(summary: Summary, exhibits: Exhibits | None) -> Exhibits | None:
    """Returns the exhibits of the finished run's chosen model; those that an earlier run left are none."""
    best = summary.row(BEST_ROW)
    is_its = exhibits is not None and best is not None and not summary.unfinished and exhibits.best == best.digest
    return exhibits if is_its else None


def _title(summary: Summary) -> str:
    name = summary.config.get("name")
    return name if isinstance(name, str) and name.strip() else "Evolution of merged models"


def _style() -> Markup:
    themes = f":root{{{variables(dark=False)}}}@media(prefers-color-scheme:dark){{:root{{{variables(dark=True)}}}}}"
    return Markup(themes + classes() + files(__package__).joinpath("page.css").read_text(encoding="utf-8"))


def _script(summary: Summary) -> Markup:
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    cards = element("script", embedded_json(_cards(summary)), type="application/json", id="cards")
    return join(cards, element("script", Markup(script)))


def _header(summary: Summary, title: str) -> Markup:
    words = sentences(summary)
    notice = element("p", words[1], class_="notice", role="note") if summary.unfinished else None
    lead = " ".join(words[:1] + words[2 if summary.unfinished else 1 :])
    return element(
        "header",
        element("p", "minerua report", class_="brand"),
        element("h1", title),
        notice,
        element("p", lead, class_="lead"),
        element("dl", *_figures(summary), class_="figures"),
    )


def _figures(summary: Summary) -> list[Markup]:
    chosen = summary.row(summary.chosen)
    shown: list[tuple[str, str, str]] = []
    if chosen is not None and chosen.mean is not None:
        radius = (chosen.mean.upper - chosen.mean.lower) / 2
        shown.append((f"{percent(chosen.mean.mean)} %", f"test score of “{chosen.name}”", f"± {percent(radius)}"))
    shown.append((f"{summary.evaluations:,}", "evaluations", ""))
    if summary.archives:
        elites = sum(archive.stats.num_elites for archive in summary.archives)
        cells = sum(archive.bins ** len(archive.others) for archive in summary.archives)
        shown.append((f"{percent(elites / cells)} %", "of all cells occupied", f"{elites:,} of {cells:,}"))
    if summary.lineage is not None:
        shown.append((str(summary.lineage.generations), "generations to the best model", ""))
    return [
        element("div", element("dt", label), element("dd", value, element("small", note) if note else None))
        for value, label, note in shown
    ]


def _sections(summary: Summary, exhibits: Exhibits | None) -> list[Markup]:
    sections = [_final(summary), exhibits_section(exhibits, summary.tasks)]
    sections += [_archives(summary), _curves(summary), _lineage(summary), _before(summary), _failures(summary)]
    config = element("section", settings(summary)) if summary.config else None
    return [section for section in [*sections, config] if section is not None]


def _final(summary: Summary) -> Markup | None:
    if not summary.rows:
        return None
    note = (
        "Test accuracy in percent, 95 % intervals below (Wilson per task). Evolution optimised the search items, and "
        "the select items helped to choose the model, so those two columns flatter it. Differences are paired: both "
        "models answered the same items. A grey difference is one that these items cannot tell from zero."
    )
    return element("section", element("h2", "Final scores"), element("p", note, class_="note"), final_table(summary))


def _archives(summary: Summary) -> Markup | None:
    if not summary.archives:
        return None
    kind = min(len(summary.tasks), 4)
    shape = {
        2: "Each cell is a range of scores on the other task and holds the best model found there.",
        3: "Each cell is a range of scores on the two other tasks and holds the best model found there.",
        4: "Each map is a projection onto two of the other tasks: it shows the best of all elites that fall into a "
        "cell, so one map alone may hide elites that another shows.",
    }[kind]
    rest = "Scores beyond an axis fall into its outermost cells. Point at a cell or choose it to see its model."
    maps = element(
        "div", *(archive_figure(summary, archive) for archive in summary.archives), class_=f"archives k{kind}"
    )
    return element(
        "section",
        element("h2", "Archives"),
        element("p", f"{shape} {rest}", class_="note"),
        _marks_legend(summary),
        maps,
        _card(),
        class_="explore",
    )


def _marks_legend(summary: Summary) -> Markup:
    experts = [name for name in summary.archives[0].marks if name != BEST_ROW]
    marks = [element("li", element("span", str(k), class_="ring"), name) for k, name in enumerate(experts, 1)]
    if BEST_ROW in summary.archives[0].marks and summary.best is not None:
        marks.append(element("li", element("span", "★", class_="ring star"), f"best model, {summary.best.label}"))
    return element("ul", *marks, class_="marks-legend", aria_label="Marks: where the scores of these models fall")


def _card() -> Markup:
    return element("div", class_="card", aria_live="polite")


def _curves(summary: Summary) -> Markup | None:
    if not summary.archives:
        return None
    return element(
        "section",
        element("h2", "Progress"),
        element("p", "Every archive after every evaluation; the seeds stand at 0.", class_="note"),
        element("div", curve_figures(summary), class_="pair"),
    )


def _lineage(summary: Summary) -> Markup | None:
    lineage = summary.lineage
    if lineage is None or not lineage.children[0].parents:
        return None
    ancestors, generations = counted(lineage.total, "ancestor"), counted(lineage.generations, "generation")
    note = f"The best model, {lineage.children[0].label}, has {ancestors} over {generations}. "
    if lineage.hidden:
        note += f"Shown are the seeds and the nearest, up to {CAP}; {lineage.hidden} more are left out. "
    note += "Each shows its average search score; the letter names the archive that its parents came from."
    legend = [
        element("li", element("span", letter(k), class_=f"sign {task_class(k)}"), t)
        for k, t in enumerate(summary.tasks)
    ]
    return element(
        "section",
        element("h2", "Lineage of the best model"),
        element("p", note, class_="note"),
        element("ul", *legend, class_="marks-legend"),
        lineage_figure(summary, lineage),
        _card(),
        class_="explore",
    )


def _before(summary: Summary) -> Markup | None:
    found = summary.preflight
    if found is None:
        return None
    note = (
        f"How the experts' changes of the base compare. s: {similarity_words(found)} In CycleQD's table 4 it went with "
        "success (correlation 0.83), in six pairs of one model family."
    )
    return element("section", element("h2", "Before the run"), element("p", note, class_="note"), pair_table(found))


def _failures(summary: Summary) -> Markup | None:
    if not summary.failures:
        return None
    count = sum(len(group.who) for group in summary.failures)
    return element(
        "section", element("h2", "Failures"), element("p", _failure_note(count), class_="note"), failure_list(summary)
    )


def _failure_note(count: int) -> str:
    return f"{counted(count, 'model')} could not be scored and took no further part; the run went on without them."


def _footer(summary: Summary, source: str) -> Markup:
    items = ", ".join(
        f"{task} " + "/".join(str(count) for count in splits.values()) for task, splits in summary.items.items()
    )
    text = f"Written from {source} by minerua; the run itself by minerua {summary.version}."
    return element("footer", element("p", text, f" Items per split: {items}." if items else None))


def _cards(summary: Summary) -> dict[str, object]:
    """What the script shows of each model on the page: those in cells and those in the lineage."""
    ids = {id for archive in summary.archives for id in shown_ids(archive)}
    ids |= {child.id for child in summary.lineage.children} if summary.lineage else set()
    everyone = (*summary.seeds, *summary.children, *([summary.best] if summary.best is not None else ()))
    labels: dict[str, str] = {}
    for child in everyone:
        labels.setdefault(child.digest, child.label)
    return {
        "tasks": list(summary.tasks),
        "first": None if summary.best is None else summary.best.id,
        "models": {str(child.id): _model(child, labels, summary) for child in everyone if child.id in ids},
    }


def _model(child: Child, labels: dict[str, str], summary: Summary) -> dict[str, object]:
    return {
        "label": child.label,
        "digest": child.digest,
        "origin": child.origin,
        "task": summary.tasks.index(child.task) if child.task in summary.tasks else None,
        "means": [round(mean, 4) for mean in child.means or ()],
        "parents": [labels[parent] for parent in child.parents],
        "shares": [[name, round(share, 3)] for name, share in sorted(child.shares.items(), key=lambda item: -item[1])],
    }
