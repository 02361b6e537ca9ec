"""Plain sentences of a small grammar: what a model should not forget while it learns skills."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .drawing import templates

__all__ = ["sentences"]

_TEXTS = templates("english")
_NAMES = ("fox", "wolf", "farmer", "queen", "child", "sailor", "baker", "king", "dog", "bird")
_QUALITIES = ("old", "young", "white", "black", "small", "tall", "quiet", "happy")
_VERBS = ("sees", "finds", "follows", "likes", "hears", "helps")


def sentences(chance: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """Yields sentences in two parts, the begin and what follows, all different."""
    seen: set[str] = set()
    while len(seen) < count:
        who, whom = chance.sample(_NAMES, 2)
        start = f"The {chance.choice(_QUALITIES)} {who}"
        rest = f" {chance.choice(_VERBS)} the {chance.choice(_QUALITIES)} {whom} {chance.choice(_TEXTS['places'])}"
        whole = rest + (f" {chance.choice(_TEXTS['times'])}." if chance.random() < 0.5 else ".")
        if start + whole not in seen:
            seen.add(start + whole)
            yield start, whole
