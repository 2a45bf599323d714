"""Note the content of the guard's version: run it after raising guard/VERSION.

An archive refuses other bytes under a version that it has, and by then servers may have them.
``--again`` replaces what is noted for this version, which no archive may have.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kbuild.core import fs
from kbuild.ship import guard_package

PROJECT = Path(__file__).resolve().parents[1]
NOTED = PROJECT / "tests/unit/data/guard-versions.txt"


def digest() -> str:
    """Return the digest of what the package is made of, without its version."""
    parts = (
        fs.sha256_tree(PROJECT / "guard/root"),
        fs.sha256_file(PROJECT / "guard/cplayground-guard.8"),
        fs.sha256_tree(PROJECT / "debian/guard"),
    )
    return "-".join(part[:16] for part in parts)


def noted() -> dict[str, str]:
    """Return the digest of each version."""
    lines = NOTED.read_text().splitlines() if NOTED.exists() else []
    return {line.split()[0]: line.split()[1] for line in lines}


if __name__ == "__main__":
    version, _ = guard_package.version(PROJECT)
    known = noted()
    if version in known and known[version] != digest() and "--again" not in sys.argv:
        sys.exit(f"{version} has other content: raise guard/VERSION")
    lines = [f"{name} {value}\n" for name, value in (known | {version: digest()}).items()]
    NOTED.write_text("".join(lines))
