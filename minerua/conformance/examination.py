"""The exam: every check that fits what is examined, each by itself, all problems together."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from minerua.conformance.candidates import EXEMPTIONS, PLUGIN_CHECKS, Candidate, find
from minerua.conformance.examples import EXAMPLES
from minerua.conformance.families import FAMILY
from minerua.conformance.report import Check, NotJudged, Problem, Report, Sample, Status, Verdict
from minerua.conformance.subject import Subject, kind_of
from minerua.errors import ConfigError, unknown
from minerua.registry import Kind, spec_faults


@dataclass(frozen=True, eq=False)
class Case:
    """One check of one thing, ready to be made.

    Args:
        kind: `"plugin"`, or what the thing is.
        name: The thing's name.
        check: The check.
        subject: What its `run` is given.
        place: Where the thing is written.
        exempt: Why the author says that it does not hold; `None`: it must.
    """

    kind: str
    name: str
    check: Check
    subject: Any
    place: Callable[[], str]
    exempt: str | None = None

    def __str__(self) -> str:
        return f"{self.kind.replace(' ', '-')}/{self.name}/{self.check.name}"

    def sit(self) -> Verdict:
        """Makes the check; whatever the thing raises is a problem, and nothing of it passes."""
        if self.exempt is not None:
            return self._verdict("exempt", reason=self.exempt)
        try:
            found = self.check.run(self.subject)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - strangers may raise anything
            found = [told(error)]
        if isinstance(found, NotJudged):
            return self._verdict("not judged", reason=found.reason)
        return self._verdict("failed" if found else "passed", found)

    def _verdict(self, status: Status, found: Sequence[str] = (), *, reason: str = "") -> Verdict:
        asked, remedy, where = self.check.asked, self.check.remedy, self.place() if found else ""
        problems = (Problem(self.kind, self.name, self.check.name, asked, one, where, remedy) for one in found)
        return Verdict(self.kind, self.name, self.check.name, status, tuple(problems), reason)


def told(error: BaseException) -> str:
    """Returns what an error says, in one line, with the place where it arose."""
    step, place = error.__traceback__, ""
    while step is not None:
        place = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return f"it raised {type(error).__name__}: {' '.join(str(error).split()):.400} ({place})"


# ── the exam ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def examine(
    target: object,
    *,
    only: str | Iterable[str] | None = None,
    samples: Mapping[str, Sample] | None = None,
    exempt: Mapping[str, str] | None = None,
    seconds: float = 60.0,
) -> Report:
    """Sits a plugin, or one thing that it provides, through its exam.

    Args:
        target: The name of an installed distribution (all its plugins) or of an entry point; a module or an object with
            hooks; or a single spec.
        only: Which checks: patterns such as `"*/gradient"` or `"loss/focal/*"` over kind/name/check. Default: all.
        samples: Name of a thing → what the exam cannot make up for it.
        exempt: Check, or name/check, → why it does not hold; beside what the plugin's module says under
            `minerua_conformance_exemptions`.
        seconds: The longest that one call of an evaluator may take.

    Returns:
        One verdict per check; `problems` are empty where the exam is passed.

    Raises:
        UnknownName: No installed plugin has the name.
        ConfigError: `only`, `samples` or `exempt` name what is not there; lists all faults.

    Example:
        >>> from minerua import Skill
        >>> double = Skill("double", lambda number: {"twice": 2 * number}, {"number": int}, {"twice": int}, pure=True)
        >>> print(examine(double, only="*/returns"))
        exam of double: 1 passed
        >>> examine(double, only=["*/pure", "*/takes"]).problems
        ()
    """
    chosen = cases(target, only=only, samples=samples, exempt=exempt, seconds=seconds)
    name = target if isinstance(target, str) else find(target)[0].name
    return Report(name, tuple(case.sit() for case in chosen))


def exam(
    target: object,
    *,
    only: str | Iterable[str] | None = None,
    samples: Mapping[str, Sample] | None = None,
    exempt: Mapping[str, str] | None = None,
    seconds: float = 60.0,
) -> Callable[[Case], None]:
    """Returns a test for pytest with one case per check.

    In a plugin's own tests one line is enough: `test_exam = exam("my-plugin")`.

    Args:
        target: As in `examine`.
        only: As in `examine`.
        samples: As in `examine`.
        exempt: As in `examine`.
        seconds: As in `examine`.

    Returns:
        A parametrised test function. What is exempt or cannot be judged is skipped, with its reason.

    Raises:
        UnknownName: No installed plugin has the name.
        ConfigError: `only`, `samples` or `exempt` name what is not there; lists all faults.
    """
    import pytest

    chosen = cases(target, only=only, samples=samples, exempt=exempt, seconds=seconds)

    @pytest.mark.parametrize("case", chosen, ids=str)
    def test_exam(case: Case) -> None:
        verdict = case.sit()
        if verdict.problems:
            pytest.fail("\n".join(map(str, verdict.problems)), pytrace=False)
        if verdict.status != "passed":
            pytest.skip(verdict.reason)

    return test_exam


# ── which checks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def cases(
    target: object,
    *,
    only: str | Iterable[str] | None = None,
    samples: Mapping[str, Sample] | None = None,
    exempt: Mapping[str, str] | None = None,
    seconds: float = 60.0,
) -> list[Case]:
    """Returns every check that fits a target, not yet made; arguments and errors as in `examine`."""
    samples, candidates = samples or {}, find(target)
    exemptions = {**{k: v for one in candidates for k, v in one.exemptions.items()}, **(exempt or {})}
    every = [case for one in candidates for case in _cases_of(one, samples, exemptions, seconds)]
    patterns = [only] if isinstance(only, str) else list(only or ["*"])
    faults = [*_exemption_faults(exemptions, every), *_sample_faults(samples, every), *_pattern_faults(patterns, every)]
    if faults:
        raise ConfigError("the exam cannot be held as it is ordered", faults)
    return [case for case in every if any(fnmatchcase(str(case), pattern) for pattern in patterns)]


def _cases_of(
    candidate: Candidate, samples: Mapping[str, Sample], exempt: Mapping[str, str], seconds: float
) -> Iterator[Case]:
    if candidate.spec is None:
        for check in PLUGIN_CHECKS:
            name = candidate.name
            yield Case("plugin", name, check, candidate, lambda: candidate.label, _excuse(exempt, name, check))
    for spec in candidate.things():
        kind = kind_of(spec)
        if kind is not None:
            name = str(getattr(spec, "name", ""))
            subject = Subject(kind, spec, samples.get(name), seconds=seconds, plugin=candidate.registry)
            for check in (one for one in _checks_of(subject) if _applies(one, subject)):
                where = _place_of(subject, candidate)
                yield Case(kind.singular, name, check, subject, where, _excuse(exempt, name, check))


def _place_of(subject: Subject, candidate: Candidate) -> Callable[[], str]:
    return lambda: f"{subject.where}, {candidate.label}"


def _excuse(exempt: Mapping[str, str], name: str, check: Check) -> str | None:
    return exempt.get(f"{name}/{check.name}", exempt.get(check.name))


def checks_of(kind: Kind) -> tuple[Check, ...]:
    """Returns the laws of one kind of thing, those of every kind first.

    Example:
        >>> from minerua.registry import KINDS
        >>> [check.name for check in checks_of(KINDS[2])][:3]
        ['spec', 'examples', 'finite']
    """
    module = importlib.import_module(f"minerua.conformance.{kind.attribute}")
    own: tuple[Check, ...] = module.CHECKS
    return (SPEC, EXAMPLES, *own)


def _checks_of(subject: Subject) -> tuple[Check, ...]:
    """Returns the checks of a thing; of a family without settings only those that need none."""
    if spec_faults(subject.kind, subject.given):
        return (SPEC,)
    every = checks_of(subject.kind)
    if not subject.is_family:
        return every
    rest = every[2:] if subject.sample.settings is not None else (SETTINGS,)
    return (*every[:2], FAMILY, *rest)


def _applies(check: Check, subject: Subject) -> bool:
    try:
        return check.applies(subject)
    except Exception:  # noqa: BLE001 - a family that cannot be configured: the check itself tells how
        return True


SPEC = Check(
    "spec",
    "a spec has every field that its kind needs, of the right type",
    "correct the field; minerua/values.py describes each",
    lambda subject: spec_faults(subject.kind, subject.given),
)
SETTINGS = Check(
    "settings",
    "a family keeps the laws of what it makes",
    "hand settings over as Sample(settings={…})",
    lambda _: NotJudged(
        "it is made from settings; hand some over as Sample(settings={…}) to have what it makes examined"
    ),
)


# ── what cannot be ordered ───────────────────────────────────────────────────────────────────────────────────────────


def _exemption_faults(exemptions: Mapping[str, str], every: Sequence[Case]) -> Iterator[str]:
    known = {*(case.check.name for case in every), *(f"{case.name}/{case.check.name}" for case in every)}
    for name, reason in exemptions.items():
        if name not in known:
            yield f"{EXEMPTIONS}: {unknown('check', str(name), sorted(known))}"
        elif not isinstance(reason, str) or not reason.strip():
            yield f"{EXEMPTIONS}[{name!r}] is {reason!r}; say in a text why the law does not hold"


def _sample_faults(samples: Mapping[str, Sample], every: Sequence[Case]) -> Iterator[str]:
    known = sorted({case.name for case in every if case.kind != "plugin"})
    for name in samples:
        if name not in known:
            yield f"samples: {unknown('thing of this plugin', str(name), known)}"


def _pattern_faults(patterns: Sequence[str], every: Sequence[Case]) -> Iterator[str]:
    for pattern in patterns:
        if not any(fnmatchcase(str(case), pattern) for case in every):
            yield f"only: no check matches {pattern!r}; write kind/name/check, such as 'loss/focal/*' or '*/gradient'"
