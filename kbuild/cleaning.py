"""Removing results: build/ always, the cache on request."""

from __future__ import annotations

import shutil
from pathlib import Path

from kbuild.model import Settings


def clean(settings: Settings, *, cache: bool = False, roots: bool = False) -> tuple[Path, ...]:
    """Remove build/, and with ``cache`` or ``roots`` the whole cache or its roots alone.

    Returns what was removed, or in a dry run what would be.
    """
    doomed = [settings.build]
    if cache:
        doomed.append(settings.cache)
    elif roots:
        doomed.append(settings.cache / "roots")
    there = tuple(path for path in doomed if path.exists())
    if not settings.dry:
        for path in there:
            shutil.rmtree(path)
    return there
