"""The words of ``--dry`` and of ``./inv explain``."""

from __future__ import annotations

from collections.abc import Callable

from kbuild.core.model import Settings, Target
from kbuild.pipeline import stages


def say_stages(
    settings: Settings, target: Target, modules: str, *, say: Callable[[str], None]
) -> int:
    """Print for each stage of ``package`` that it is current, or why it would run; return 0."""
    for step in stages.explain(settings, target, modules=modules):
        say(f"{step.name:<16} {f'would run: {step.reason}' if step.reason else 'is current'}")
    return 0
