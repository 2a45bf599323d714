"""requirements.lock: what runs as root has a version and hashes, as pyproject.toml asks for it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]
LOCK = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
WANTED = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(lock: str) -> dict[str, tuple[Requirement, int]]:
    """Return each entry of a lock file by its name, with the number of its hashes."""
    found: dict[str, tuple[Requirement, int]] = {}
    lines = [line for line in lock.splitlines() if not line.lstrip().startswith("#")]
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        head, *hashes = re.split(r"\s+(?=--hash=)", entry.strip())
        requirement = Requirement(head)
        assert all(_HASH.fullmatch(each) for each in hashes), entry
        found[canonicalize_name(requirement.name)] = (requirement, len(hashes))
    return found


def faults(lock: str, dependencies: list[str]) -> list[str]:
    """Name what is wrong with a lock file, as against the dependencies that it was made from."""
    entries = locked(lock)
    found = []
    for name, (requirement, hashes) in entries.items():
        pins = list(requirement.specifier)
        if requirement.url or [pin.operator for pin in pins] != ["=="] or "*" in pins[0].version:
            found.append(f"{name} has no version of its own")
        if not hashes:
            found.append(f"{name} has no hash")
    for text in dependencies:
        wanted = Requirement(text)
        entry = entries.get(canonicalize_name(wanted.name))
        if entry is None:
            found.append(f"{wanted.name} is missing")
        elif not all(wanted.specifier.contains(pin.version) for pin in entry[0].specifier):
            found.append(f"{wanted.name} is too old or too new")
    return found


def test_the_lock_is_of_these_dependencies() -> None:
    assert len(locked(LOCK)) > len(WANTED["dependencies"])
    assert not faults(LOCK, WANTED["dependencies"])


def test_this_environment_is_the_locks() -> None:
    for name, (requirement, _) in locked(LOCK).items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(importlib.metadata.version(name)), name


GOOD = f"""\
# made by a tool
rich==13.7.0 \\
    --hash=sha256:{64 * "a"} \\
    --hash=sha256:{64 * "b"}
"""


@pytest.mark.parametrize(
    ("lock", "fault"),
    [
        (GOOD, None),
        ("rich==13.7.0\n", "rich has no hash"),
        (GOOD.replace("==", ">="), "rich has no version of its own"),
        (GOOD.replace("==13.7.0", "==13.*"), "rich has no version of its own"),
        (GOOD.replace("==13.7.0", "==12.1"), "rich is too old or too new"),
        (GOOD.replace("rich", "poor"), "rich is missing"),
    ],
)
def test_a_fault_is_found(lock: str, fault: str | None) -> None:
    found = faults(lock, ["rich>=13"])
    assert (fault in found) if fault else not found


@pytest.mark.parametrize("line", ["--index-url https://index.example/simple", "-e .", "./a.whl"])
def test_nothing_but_packages_can_be_in_it(line: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        locked(GOOD + line)
