"""Database tasks: SQL that models write, executed on a real database."""

from __future__ import annotations

from .evaluator import configure_database, database_evaluator
from .items import DatabaseItem, Table, read_database_items

__all__ = ["DatabaseItem", "Table", "configure_database", "database_evaluator", "read_database_items"]
