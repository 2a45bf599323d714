"""Merge configuration fragments into a base, and check that each option is in the result.

Kconfig silently drops options that it cannot grant.  A "KASAN" kernel without KASAN would pass
every test.  So each option of each fragment is looked up in the final ``.config``, and a missing
one is an error with its reason.
"""

from __future__ import annotations

import json
import logging
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.core import sandbox
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Root
from kbuild.core.sandbox import Bind

logger = logging.getLogger(__name__)

_SET = re.compile(r"^CONFIG_(\w+)=(.*)$")
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$")
# A fragment's note on the option in the next line.  Some kernels do not have that option; they have
# nothing instead, or an option with another name.
_WHERE = re.compile(r"^# \[where it exists(?:, else CONFIG_(\w+))?\]$")
_DEFINITION = re.compile(r"^\s*(?:menu)?config\s+(\w+)\s*$")
_SOURCE = re.compile(r'^\s*source\s+"?([\w$()/.+-]+)"?\s*$')
_EXPLAINER = Path(__file__).parent / "in_root" / "kconfig_reasons.py"
_EXPLAIN_TIMEOUT_S = 300
# Debian's own files have a quarter of this.
_LARGEST = 1 << 20  # bytes


@dataclass(frozen=True)
class Fragment:
    """A piece of configuration: option (without CONFIG_) to value, ``n`` for not set."""

    name: str
    options: Mapping[str, str]
    # Options that some kernels lack, and their replacement there ("" for none).
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the fragment in ``.config`` syntax, sorted."""
        return "".join(_line(name, self.options[name]) for name in sorted(self.options))


def _line(name: str, value: str) -> str:
    return f"# CONFIG_{name} is not set\n" if value == "n" else f"CONFIG_{name}={value}\n"


def parse(text: str, *, name: str, strict: bool = False) -> Fragment:
    """Parse ``.config`` syntax; with ``strict``, any other form of line raises UserError."""
    options: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    where: re.Match[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        match = _SET.match(line) or _UNSET.match(line)
        if match:
            options[match[1]] = match[2] if len(match.groups()) > 1 else "n"
            if where:
                elsewhere[match[1]] = where[1] or ""
        elif strict and line.strip() and not line.startswith("#"):
            raise UserError(
                f"{name}:{number} is not configuration",
                expected="CONFIG_NAME=value, or '# CONFIG_NAME is not set', or a comment",
                found=line,
            )
        elif where:
            raise UserError(
                f"{name}:{number - 1} is a note without an option",
                expected="an option in the next line",
                found=line or "an empty line",
            )
        where = _WHERE.match(line)
    if where:
        raise UserError(f"{name} ends with a note without an option", found=where[0])
    return Fragment(name, options, elsewhere)


def read(path: Path, *, strict: bool = True) -> Fragment:
    """Read a fragment's or a kernel's configuration file.

    Raises UserError for anything but a text file of usual size: a pipe gives its content only
    once, and a device may have no end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _unreadable(path, "it is not a regular file")
        with path.open("rb") as stream:
            raw = stream.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise _unreadable(path, f"it is larger than {_LARGEST} bytes")
        return parse(raw.decode(), name=str(path), strict=strict)
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not a text in UTF-8") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"the configuration {path} cannot be read: {why}")


def settle(fragment: Fragment, kernel: Path) -> Fragment:
    """Return a fragment limited to the options that the source tree ``kernel`` has.

    Only options that the fragment itself notes as optional are replaced or omitted, and each is
    logged.  Any other unknown option becomes an error later, like one that is not granted.
    """
    if not fragment.elsewhere:
        return fragment
    there = definitions(kernel)
    options = dict(fragment.options)
    for option, instead in fragment.elsewhere.items():
        if option in there:
            continue
        value = options.pop(option)
        if instead:
            options.setdefault(instead, value)
        logger.info(
            "this kernel has no CONFIG_%s (%s)%s",
            option,
            Path(fragment.name).name,
            f": using CONFIG_{instead}={value}" if instead else ", and needs none",
        )
    return Fragment(fragment.name, options)


def definitions(tree: Path, *, architecture: str = "x86") -> dict[str, str]:
    """Return every option that a source tree defines, and what its definitions depend on.

    It follows "source" from the top, as kconfig does.  kconfiglib 14.1, the last release, cannot
    read newer kernels' files, and it needs the suite's compiler.
    """
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    waiting = ["Kconfig"]
    while waiting:
        name = waiting.pop()
        path = tree / name
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        current: list[str] = []
        for line in path.read_text(errors="replace").splitlines():
            if match := _DEFINITION.match(line):
                current = found.setdefault(match[1], [])
            elif match := _SOURCE.match(line):
                inner = re.sub(r"\$\((?:SRCARCH|HEADER_ARCH)\)", architecture, match[1])
                waiting.append(inner)
            elif line and not line[0].isspace():
                current = []
            elif line.strip().startswith("depends on "):
                current.append(line.strip())
    return {name: "; ".join(dict.fromkeys(lines)) for name, lines in found.items()}


def merge(base: Fragment, fragments: Iterable[Fragment]) -> str:
    """Return ``base`` updated with ``fragments``, later ones winning, as ``.config`` text."""
    options = dict(base.options)
    for fragment in fragments:
        options |= fragment.options
    return Fragment("merged", options).text()


def dropped(final: Fragment, fragments: Sequence[Fragment]) -> dict[str, tuple[str, str, str]]:
    """Return option → (wanted, got, fragment) for each option that the result does not grant.

    A later fragment overrides an earlier one, so only the last value of an option counts.
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


def strayed(distro: Fragment, final: Fragment, fragments: Sequence[Fragment]) -> dict[str, str]:
    """Return option → "wanted -> got" for each difference from the distro's plus ``fragments``.

    A missing option counts as not set, because Kconfig omits options that cannot be chosen.
    """
    wanted = dict(distro.options)
    for fragment in fragments:
        wanted |= fragment.options
    return {
        option: f"{value} -> {got}"
        for option in sorted({*wanted, *final.options})
        if (value := wanted.get(option, "n")) != (got := final.options.get(option, "n"))
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
    """Raise BuildError unless ``final`` has every option of every fragment with its value.

    kconfiglib gives the reasons.  It runs in the root on the same tree (/mnt/source) and result
    (/mnt/out), as ``binds`` shows them.
    """
    missing = dropped(final, fragments)
    if not missing:
        return
    completed = sandbox.enter(
        root,
        ["python3", "/mnt/kconfig_reasons.py", "/mnt/out/.config", *missing],
        timeout_s=_EXPLAIN_TIMEOUT_S,
        binds=[*binds, Bind(_EXPLAINER, "/mnt/kconfig_reasons.py")],
        cwd="/mnt/source",
        # These make kconfiglib read the tree as kbuild does.
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
    if not reasons:
        # Some suites lack kconfiglib, and it cannot read every kernel's files.
        reasons = _written_reasons(missing, binds)
    lines = [
        f"CONFIG_{option}: wanted {wanted} ({source}), got {got}: "
        + reasons.get(option, "no reason could be found; see the log")
        for option, (wanted, got, source) in missing.items()
    ]
    with log.open("a") as stream:
        stream.write(completed.stdout + completed.stderr)
    raise BuildError(
        f"{len(missing)} option(s) of the fragments are not in the final configuration",
        expected="every option with the value in its fragment",
        found="\n".join(lines),
        log=log,
        hint="set the dependencies of each option in the fragment, or remove the option",
    )


def _written_reasons(missing: Mapping[str, object], binds: Sequence[Bind]) -> dict[str, str]:
    tree = next(bind.source for bind in binds if bind.target == "/mnt/source")
    there = definitions(tree)
    return {
        option: "this kernel has no such option"
        if option not in there
        else f"its definition says: {there[option] or 'it depends on nothing'}"
        for option in missing
    }


def _reasons(text: str) -> dict[str, str]:
    try:
        raw = json.loads(text)
    except ValueError:
        return {}
    return {str(name): str(reason) for name, reason in raw.items()}
