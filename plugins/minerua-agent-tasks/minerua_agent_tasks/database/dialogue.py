"""What a model is told about a database task, and what is read from its answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minerua.errors import ConfigError

from ..asking import Conversation
from .engines import Output
from .inside.tables import creation
from .items import DatabaseItem, rows_of

__all__ = ["RULES", "Move", "move_in", "opening", "reply", "schema", "sql_in", "template"]

_SHOWN_LETTERS = 800
"""How much of a result a model is shown, as in AgentBench."""

_MOST_LETTERS = 64 << 10

RULES = """You work on a {kind} database by SQL until you can answer a question about it, or have changed it as asked.
In each turn write down your thoughts, and then do one of two things.
To execute SQL, write this; you will then be told what came of it:
Action: Operation
```sql
SELECT * FROM a_table WHERE a_column = 1;
```
Write one statement, on one line; only the first block is executed.
To end with your answer, write this:
Action: Answer
Final Answer: ["first value", "second value"]
The answer is compared with the right one, so give the values only. If you were asked to change the database, any
answer will do once you have changed it. There are {turns} turns, the one with your answer included."""
"""In the words of this package, what AgentBench's task tells; the format of answers is AgentBench's."""


@dataclass(frozen=True)
class Move:
    """What a model does in a turn: exactly one of the two is given.

    Args:
        sql: To be executed.
        answer: Its final answer, as rows.
    """

    sql: str | None = None
    answer: tuple[tuple[Any, ...], ...] | None = None


def sql_in(answer: str) -> str:
    r"""Returns the SQL in an answer: the first block marked as SQL, else the first block, else the whole answer.

    Example:
        >>> sql_in("This counts them:\n```sql\nSELECT count(*) FROM t;\n```\nDone.")
        'SELECT count(*) FROM t;'
    """
    blocks = _FENCE.findall(answer)
    marked = [block for kind, word, block in blocks if word or kind.lower().endswith(("sql", "sqlite"))]
    return (*marked, *(block for _, _, block in blocks), answer)[0].strip()


_FENCE = re.compile(r"```[ \t]*(?:([\w+-]*)[ \t]*\n|((?i:sql))[ \t])?(.*?)(?:```|\Z)", re.DOTALL)


def move_in(answer: str) -> Move | None:
    r"""Returns what an answer of a dialogue asks for; `None` if it does neither.

    Example:
        >>> move_in('I know.\nAction: Answer\nFinal Answer: ["7"]')
        Move(sql=None, answer=(('7',),))
    """
    action = re.search(r"Action:\s*(Operation|Answer)\b", answer, re.IGNORECASE)
    if action is None:
        return None
    rest = answer[action.end() :]
    if action[1].lower() == "operation":
        return Move(sql=sql_in(rest)) if "```" in rest else None
    final = re.search(r"Final Answer:(.*)", rest)
    return Move(answer=_values(final[1].strip()[:_MOST_LETTERS])) if final else None


def _values(text: str) -> tuple[tuple[Any, ...], ...]:
    try:
        given = json.loads(text)
        return rows_of(given if isinstance(given, list) else [given])
    except (ValueError, RecursionError):
        pass
    if not (text.startswith(("[", "(")) and text.endswith(("]", ")"))):
        return ((text,),)
    return tuple((quoted or plain.strip(),) for quoted, plain in _VALUE.findall(text[1:-1]))


_VALUE = re.compile(r"""(?:(?<!\w)["']((?:[^"'\\]|\\.|(?<=\w)'(?=\w))*)["'])|([^,\[\]()"'\s][^,\[\]()"']*)""")


# ── what it is told ──────────────────────────────────────────────────────────────────────────────────────────────────


def schema(item: DatabaseItem) -> str:
    """Returns the SQL that makes an item's database, without the rows of its tables."""
    made = [creation({"name": t.name, "columns": t.columns}, lambda name: f'"{name}"') + ";" for t in item.tables]
    return "\n".join([*made, *([item.setup] if item.setup else [])])


def template(text: str | None) -> Callable[[DatabaseItem], str]:
    """Returns what makes a prompt of an item: `{prompt}` stands for its own, `{schema}` for `schema(item)`.

    Without a text it is the item's own prompt, and for AgentBench's items, which do not speak of SQL, a line that does.

    Raises:
        ConfigError: There is no `{prompt}` in it.

    Example:
        >>> template("{schema} {prompt}")(DatabaseItem("1", "How many?", setup="CREATE TABLE t (x);"))
        'CREATE TABLE t (x); How many?'
    """
    if text is None:
        return lambda item: f"{item.prompt}\n{_ONE_STATEMENT}" if item.is_agentbench else item.prompt
    if "{prompt}" not in text:
        raise ConfigError(f"the prompt {text!r:.60} does not say where the item's own is put; write {{prompt}} there")

    def ask(item: DatabaseItem) -> str:
        parts = {"prompt": item.prompt, "schema": schema(item)}
        return re.sub(r"\{(prompt|schema)\}", lambda found: parts[found[1]], text)

    return ask


_ONE_STATEMENT = "Answer with one SQL statement that does this."


def opening(said: str, system: str | None, *, turns: int, kind: str) -> Conversation:
    """Returns the first conversation of an item; for more than one turn with the rules before it."""
    told = [] if system is None else [{"role": "system", "content": system}]
    if turns == 1 and not told:
        return said
    if turns > 1:
        rules = RULES.format(kind=kind, turns=turns)
        told += [{"role": "user", "content": rules}, {"role": "assistant", "content": "Ok."}]
    return [*told, {"role": "user", "content": said}]


def reply(output: Output) -> str:
    """Returns what a model is told of what its SQL gave: rows as Python writes them, or the error; cut at 800 letters.

    Example:
        >>> reply(Output(rows=((1, "a"),)))
        "[(1, 'a')]"
    """
    if output.error is not None:
        text = f"Error: {output.error}"
    elif output.rows is None:
        text = f"Done. Rows changed: {output.changed}" if output.changed >= 0 else "Done."
    else:
        text = str(list(output.rows))
    is_long = len(text) > _SHOWN_LETTERS or output.is_cut
    return text[:_SHOWN_LETTERS] + ("[TRUNCATED]" if is_long else "")
