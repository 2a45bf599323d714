"""Kernel configuration: fragments on a base, and the proof that each option is in the result.

Kconfig drops what it cannot grant without a word.  A "KASAN" kernel without KASAN would
pass every test, so each option of each fragment is looked up in the final ``.config``,
and one that is not there is an error with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild import roots
from kbuild.errors import BuildError, UserError
from kbuild.model import Root
from kbuild.roots import Bind

_SET = re.compile(r"^CONFIG_(\w+)=(.*)$")
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$")
_EXPLAINER = Path(__file__).with_name("kconfig_reasons.py")
_EXPLAIN_TIMEOUT_S = 300


@dataclass(frozen=True)
class Fragment:
    """A piece of configuration: option (without CONFIG_) to value, ``n`` for not set."""

    name: str
    options: Mapping[str, str]

    def text(self) -> str:
        """Return the fragment in ``.config`` syntax, sorted."""
        return "".join(_line(name, self.options[name]) for name in sorted(self.options))


def _line(name: str, value: str) -> str:
    return f"# CONFIG_{name} is not set\n" if value == "n" else f"CONFIG_{name}={value}\n"


def parse(text: str, *, name: str, strict: bool = False) -> Fragment:
    """Read ``.config`` syntax; with ``strict`` a line of any other form raises UserError."""
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _SET.match(line):
            options[match[1]] = match[2]
        elif match := _UNSET.match(line):
            options[match[1]] = "n"
        elif strict and line.strip() and not line.startswith("#"):
            raise UserError(
                f"{name}:{number} is not configuration",
                expected="CONFIG_NAME=value, or '# CONFIG_NAME is not set', or a comment",
                found=line,
            )
    return Fragment(name, options)


def read(path: Path, *, strict: bool = True) -> Fragment:
    """Read a fragment's or a kernel's configuration file."""
    try:
        return parse(path.read_text(), name=str(path), strict=strict)
    except OSError as error:
        raise UserError(f"the configuration {path} cannot be read: {error.strerror}") from error


def merge(base: Fragment, fragments: Iterable[Fragment]) -> str:
    """Return ``base`` with ``fragments`` on top, later ones winning, as ``.config`` text."""
    options = dict(base.options)
    for fragment in fragments:
        options |= fragment.options
    return Fragment("merged", options).text()


def dropped(final: Fragment, fragments: Sequence[Fragment]) -> dict[str, tuple[str, str, str]]:
    """Return option → (wanted, got, fragment) for each one that the result does not grant.

    A later fragment overrides an earlier one, so only the last word on an option counts.
    """
    wanted = {
        option: (value, fragment.name)
        for fragment in fragments
        for option, value in fragment.options.items()
    }
    return {
        option: (value, got, source)
        for option, (value, source) in sorted(wanted.items())
        if (got := final.options.get(option, "n")) != value
    }


def verify(
    final: Fragment,
    fragments: Sequence[Fragment],
    *,
    root: Root,
    compiler: str,
    binds: Sequence[Bind],
    log: Path,
) -> None:
    """Raise BuildError unless every option of every fragment is in ``final`` as asked for.

    The reasons come from kconfiglib, run in the root on the same tree (/mnt/source) and
    result (/mnt/out), as ``binds`` shows them.
    """
    missing = dropped(final, fragments)
    if not missing:
        return
    completed = roots.enter(
        root,
        ["python3", "/mnt/kconfig_reasons.py", "/mnt/out/.config", *missing],
        timeout_s=_EXPLAIN_TIMEOUT_S,
        binds=[*binds, Bind(_EXPLAINER, "/mnt/kconfig_reasons.py")],
        cwd="/mnt/source",
        # kconfiglib reads the tree as kbuild would.
        env={
            "srctree": "/mnt/source",
            "ARCH": "x86",
            "SRCARCH": "x86",
            "CC": compiler,
            "LD": "ld",
        },
        check=False,
    )
    reasons = _reasons(completed.stdout)
    lines = [
        f"CONFIG_{option}: wanted {wanted} ({source}), got {got}: "
        + reasons.get(option, "no reason could be found; see the log")
        for option, (wanted, got, source) in missing.items()
    ]
    with log.open("a") as stream:
        stream.write(completed.stdout + completed.stderr)
    raise BuildError(
        f"{len(missing)} option(s) of the fragments are not in the final configuration",
        expected="every option as its fragment asks for it",
        found="\n".join(lines),
        log=log,
        hint="set what it depends on in the fragment, or take the option out",
    )


def _reasons(text: str) -> dict[str, str]:
    try:
        raw = json.loads(text)
    except ValueError:
        return {}
    return {str(name): str(reason) for name, reason in raw.items()}
