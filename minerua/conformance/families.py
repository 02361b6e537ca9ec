"""What every family keeps, of skills, models and evaluators: it refuses settings that it does not know."""

from __future__ import annotations

from minerua.conformance.report import Check, Found
from minerua.conformance.subject import Subject
from minerua.errors import ChainError, ConfigError


def refuses_unknown_settings(subject: Subject) -> Found:
    """Tells if a family takes a setting that does not exist, or refuses it with another error than minerua's."""
    try:
        subject.given.configure({"no_such_setting": 1}, subject.context)
    except (ConfigError, ChainError) as error:
        return [] if "no_such_setting" in str(error) else [f"the error does not name the setting: {error}"]
    except Exception as error:  # noqa: BLE001 - any other error is the problem
        return [f"configure with the setting no_such_setting raised {type(error).__name__}: {error!s:.200}"]
    return ["configure took the setting no_such_setting without a word"]


FAMILY = Check(
    "family",
    "a family refuses a setting that it does not know with a ConfigError that names it",
    "collect every fault of the settings, and raise minerua.errors.ConfigError with all of them",
    refuses_unknown_settings,
)
