"""Note the content of a package's version: run it after raising the version.

    python -m tests.package_versions guard
    python -m tests.package_versions tool

An archive refuses other bytes under a version that it has, and by then servers may have them.
``--again`` replaces what is noted for this version, which no archive may have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs
from kbuild.ship import shared, tool_package
from kbuild.ship.shared import SharedPackage

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Noted:
    """A package whose versions are noted, and the digests of its parts without its version."""

    package: SharedPackage
    parts: Callable[[], tuple[str, ...]]

    @property
    def path(self) -> Path:
        """The file with the digest of each version."""
        return PROJECT / f"tests/unit/data/{self.package.role}-versions.txt"

    def digest(self) -> str:
        """Return the digest of what the package is made of now."""
        return "-".join(part[:16] for part in self.parts())

    def noted(self) -> dict[str, str]:
        """Return the digest of each version."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {line.split()[0]: line.split()[1] for line in lines}


def _of_guard() -> tuple[str, ...]:
    return (
        fs.sha256_tree(PROJECT / "guard/root"),
        fs.sha256_file(PROJECT / "guard/cplayground-guard.8"),
        fs.sha256_tree(PROJECT / "debian/guard"),
    )


def _of_tool() -> tuple[str, ...]:
    content = tool_package.digest(PROJECT, without=Path(shared.TOOL.version_file))
    return content, fs.sha256_tree(PROJECT / "debian" / shared.TOOL.role)


ALL = {"guard": Noted(shared.GUARD, _of_guard), "tool": Noted(shared.TOOL, _of_tool)}


def main(name: str, *, again: bool) -> None:
    """Note the content of a package's version; exits with a message if it may not change."""
    one = ALL[name]
    version, _ = shared.dated_version(PROJECT, one.package)
    known = one.noted()
    if version in known and known[version] != one.digest() and not again:
        sys.exit(f"{version} has other content: raise {one.package.version_file}")
    lines = [f"{name} {value}\n" for name, value in (known | {version: one.digest()}).items()]
    one.path.write_text("".join(lines))


if __name__ == "__main__":
    main(sys.argv[1], again="--again" in sys.argv)
