"""The words of ``--dry`` and of ``./inv explain``."""

from __future__ import annotations

from collections.abc import Callable

from kbuild.answer import Answer
from kbuild.core.model import Settings, Target
from kbuild.pipeline import stages


def explain(settings: Settings, target: Target, modules: str) -> Answer:
    """Answer for each stage of ``package`` that it is current, or why it would run."""
    steps = stages.explain(settings, target, modules=modules)
    lines = (
        f"{step.name:<16} {f'would run: {step.reason}' if step.reason else 'is current'}"
        for step in steps
    )
    return Answer(data={"stages": steps}, text="\n".join(lines))


def say_stages(
    settings: Settings, target: Target, modules: str, *, say: Callable[[str], None]
) -> int:
    """Print what :func:`explain` answers; return 0."""
    say(explain(settings, target, modules).text)
    return 0
