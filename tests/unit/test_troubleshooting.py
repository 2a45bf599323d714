"""The page on troubleshooting quotes errors as the code words them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs/howto/troubleshooting.md"


def texts() -> Iterator[str]:
    """Yield every string of the tasks and the library, and the script that installs them."""
    yield (PROJECT / "inv").read_text(encoding="utf-8")
    for path in (PROJECT / "tasks.py", *(PROJECT / "kbuild").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def quoted(page: str) -> Iterator[str]:
    """Yield the parts of the errors that a paragraph begins with; an ellipsis divides them."""
    for heading in re.findall(r"(?m)^\*\*(`.*)$", page):
        for error in re.findall(r"`([^`]+)`", heading):
            yield from filter(None, (part.strip() for part in error.split("…")))


def test_quoted_errors_exist() -> None:
    known = "\n".join(texts())
    parts = list(quoted(PAGE.read_text(encoding="utf-8")))
    assert len(parts) > 10
    assert not [part for part in parts if part not in known]
