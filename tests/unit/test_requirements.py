"""requirements.lock has a version and hashes of every package that pyproject.toml asks for."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]
LOCK = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
WANTED = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked() -> dict[str, Requirement]:
    """Return each entry by its name; fail unless it has one version and hashes."""
    found: dict[str, Requirement] = {}
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        head, *hashes = re.split(r"\s+(?=--hash=)", entry.strip())
        requirement = Requirement(head)
        assert hashes and all(_HASH.fullmatch(each) for each in hashes), entry
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "*" not in pin.version and not requirement.url, entry
        found[canonicalize_name(requirement.name)] = requirement
    return found


def test_the_lock_has_every_dependency_in_a_version_that_fits() -> None:
    entries = locked()
    for text in WANTED["dependencies"]:
        wanted = Requirement(text)
        (pin,) = entries[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(pin.version), text


def test_this_environment_is_the_locks() -> None:
    for name, requirement in locked().items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(importlib.metadata.version(name)), name
