"""Define the answer of a task: data for programs, text for people, and how it ended.

``--json`` makes one JSON document of it.  docs/reference/json.md describes the documents.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from kbuild.core.errors import KbuildError
from kbuild.core.secrets import redact

# Changes when the meaning of a field does; new fields do not change it.
FORMAT = 1
# Fields of each document, which no task may use for its data.
COMMON = ("format", "task", "status", "dry", "summary", "error")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of a task.

    With ``error``, the task failed but its data are valid; ``status`` is then that of the error.
    """

    # Plain values, dataclasses, paths and errors, by names that are not in COMMON.
    data: Mapping[str, object] = field(default_factory=dict)
    text: str = ""  # printed only without --json
    summary: str = ""  # one line, the last: the state that the task has reached
    status: int = 0
    error: KbuildError | None = None

    def __post_init__(self) -> None:
        if taken := sorted(set(self.data) & {*COMMON}):
            raise ValueError(f"data may not have the name {', '.join(taken)}")


def document(
    task: str,
    status: int,
    data: Mapping[str, object],
    *,
    summary: str = "",
    error: KbuildError | Mapping[str, object] | None = None,
) -> str:
    """Return the JSON document of a task; ``error`` may be given as its fields."""
    common = {"format": FORMAT, "task": task, "status": status, "summary": summary or None}
    return json.dumps(plain({**common, **data, "error": error}), indent=2)


def plain(value: object) -> object:
    """Return a value as JSON has it, without passwords."""
    if isinstance(value, KbuildError):
        # The labels are those of the error's text.
        names = {"what": value.what, "expected": value.expected, "found": value.found}
        steps = {"log": value.log, "do": value.hint, "status": value.exit_status}
        return plain({"kind": value.kind, **names, **steps})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, str | PurePath):
        return redact(os.fspath(value))
    return value
