"""Database tasks: a sentence about a small table becomes a statement of SQL that asks it or changes it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from .drawing import Draw, Task, listed, templates

__all__ = ["draw_database", "outcome"]

_TEXTS = templates("database")
_TABLES = (
    ("stock", "item", ("price", "weight", "shelf")),
    ("people", "name", ("age", "size", "floor")),
    ("books", "title", ("pages", "price", "age")),
    ("trips", "city", ("days", "price", "weight")),
    ("tools", "kind", ("size", "weight", "days")),
)
_WORDS = ("lamp", "rose", "fox", "oak", "moon", "salt", "wolf", "pear")

_SLIPS = ((" > ", " >= "), (" < ", " <= "), (" >= ", " > "), (" != ", " = "), (" AND ", " OR "), (" OR ", " AND "))
_TRIES = 12  # tables that are drawn for an item; the one that tells its solution from most of these slips is taken


class _Table:
    """A table that is spoken of: its name, two of its columns of numbers, and the numbers that decide."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.name, self.word, numbers = draw.filling(_TABLES)
        self.numbers = tuple(draw.random.sample(numbers, 2))
        self.near: dict[str, int] = {}

    def number(self) -> str:
        return self.draw.filling(self.numbers)

    def condition(self) -> tuple[str, str]:
        """Returns one condition or two, in words and in SQL."""
        (said, joint) = self.draw.part(_TEXTS["joints"])
        columns = self.draw.random.sample(self.numbers, 2 if said else 1)
        both = [self._single(column) for column in columns]
        return said.join(words for words, _ in both), joint.join(sql for _, sql in both)

    def _single(self, column: str) -> tuple[str, str]:
        words, sql = self.draw.part(_TEXTS["conditions"])
        self.near[column] = k = self.draw.number(2, 99)
        return words.format(c=column, k=k), sql.format(c=column, k=k)

    def content(self) -> dict[str, Any]:
        """Returns columns and rows; there are rows on both sides of every condition."""
        words = self.draw.random.sample(_WORDS, len(_WORDS))
        numbers = [self._spread(self.near.get(column, 40)) for column in self.numbers]
        columns = [{"name": self.word, "type": "TEXT"}, *({"name": name, "type": "INTEGER"} for name in self.numbers)]
        return {"columns": columns, "rows": [list(row) for row in zip(words, *numbers, strict=True)]}

    def _spread(self, middle: int) -> list[int]:
        """Returns different numbers around one, mixed; different, so that an order of rows is never left open."""
        around = [middle + step for step in (-9, -2, -1, 0, 1, 2, 9, 30)]
        return self.draw.random.sample(around, len(around))


def draw_database(draw: Draw) -> Task:
    """Draws a database task, in minerua-agent-tasks' own fields."""
    table = _Table(draw)
    sentence, sql = draw.part((_select, _measure, _change, _insert, _select, _measure, _change))(draw, table)
    columns = [table.word, *table.numbers]
    prompt = f"{table.name}({', '.join(columns)}): {sentence}"
    return Task((prompt, sql), lambda: _fields(prompt, table, sql))


def _fields(prompt: str, table: _Table, sql: str) -> dict[str, Any]:
    """Returns an item: what a query must return, or the statement whose effect a change must have."""
    tables = [{table.name: table.content()} for _ in range(_TRIES)]
    near = [sql.replace(old, new, 1) for old, new in _SLIPS if old in sql]
    chosen = min(tables, key=lambda one: [outcome(one, other) for other in near].count(outcome(one, sql)))
    answer, _ = outcome(chosen, sql)
    if not sql.startswith("SELECT"):
        return {"prompt": prompt, "tables": chosen, "solution": sql}
    return {"prompt": prompt, "tables": chosen, "answer": answer, "ordered": "ORDER" in sql}


def outcome(tables: dict[str, Any], sql: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """Returns what a statement returns, and what it leaves in the table of an item."""
    with closing(sqlite3.connect(":memory:")) as connection:
        ((name, table),) = tables.items()
        columns = ", ".join(f"{column['name']} {column['type']}" for column in table["columns"])
        connection.execute(f"CREATE TABLE {name} ({columns})")
        places = ", ".join("?" * len(table["columns"]))
        connection.executemany(f"INSERT INTO {name} VALUES ({places})", table["rows"])
        returned = [list(row) for row in connection.execute(sql)]
        return returned, [list(row) for row in connection.execute(f"SELECT * FROM {name}")]


def _select(draw: Draw, table: _Table) -> tuple[str, str]:
    shown = draw.part(((table.word,), (table.numbers[0],), (table.word, table.numbers[1])))
    order, by = draw.part(_TEXTS["orders"])
    words, where = table.condition()
    column = table.number()
    said = f"Show {listed(shown)} where {words}{order.format(c=column)}."
    sql = _TEXTS["question"].format(shown=", ".join(shown), table=table.name, where=where)
    return said, sql + by.format(c=column)


def _measure(draw: Draw, table: _Table) -> tuple[str, str]:
    said, sql = draw.part(_TEXTS["measures"])
    words, where = table.condition()
    column = table.number()
    sql = _TEXTS["question"].format(shown=sql.format(c=column), table=table.name, where=where)
    return f"{said.format(c=column)} where {words}?", sql


def _change(draw: Draw, table: _Table) -> tuple[str, str]:
    said, sql = draw.part(_TEXTS["changes"])
    words, where = table.condition()
    column = table.number()
    k = draw.number(2, 60) if "{k}" in said else 0
    return f"{said.format(c=column, k=k)} where {words}.", f"{sql.format(t=table.name, c=column, k=k)} WHERE {where}"


def _insert(draw: Draw, table: _Table) -> tuple[str, str]:
    word = draw.filling(_WORDS)
    verb = draw.part(("Add", "Insert"))
    a, b = draw.number(2, 99), draw.number(2, 99)
    said = f"{verb} {word} with {table.numbers[0]} {a} and {table.numbers[1]} {b}."
    return said, _TEXTS["insertion"].format(table=table.name, word=word, a=a, b=b)
