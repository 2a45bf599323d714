"""Check a guest's kernel for leaks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kbuild.core.variants import variant
from kbuild.guest.guest import Guest
from kbuild.lab import probing
from kbuild.lab.setup import Lab


@contextlib.contextmanager
def none(guest: Guest, lab: Lab) -> Iterator[None]:
    """Fail if the block leaves objects, leaks that kmemleak finds, or a detector that is off.

    The module must not be loaded before and after the block.
    """
    before = probing.count(guest)
    yield
    fragments = variant(lab.target.variant).fragments
    checks = probing.leak_checks(guest, before, fragments)
    bad = [check for check in checks if check.outcome is not None and not check.passed]
    assert not bad, "\n".join(f"{check.name}: {check.found}" for check in bad)
