"""The backends: the choice of one, and that all of them show the same."""

from __future__ import annotations

import pytest

from kbuild.core.model import MODULE, PROCFILE
from kbuild.guest import image
from kbuild.guest.guest import Guest
from tests.vm.module import backends, compare, kernel_log, load, topology, unload, without_ids


def test_says_what_it_is(loaded: Guest, request: pytest.FixtureRequest) -> None:
    expected = ["stock", "export"] if image.is_ours(loaded.kernel) else ["stock"]
    assert backends(loaded) == expected
    parameter = loaded.read(f"/sys/module/{MODULE}/parameters/backend")
    assert parameter.decode().strip() == expected[0]
    version = (request.config.rootpath / "kmod" / "VERSION").read_text().strip()
    assert f"{MODULE}: version {version}, {PROCFILE}, backend {expected[0]}" in kernel_log(loaded)


def test_each_backend_or_a_clear_refusal(guest: Guest) -> None:
    """All built-in backends show the same bytes; one that is not built in is refused."""
    texts = {}
    with topology(guest):
        for backend in backends(guest):
            load(guest, f"backend={backend}")
            texts[backend] = without_ids(guest.read(PROCFILE))
            compare(guest)
            unload(guest)
        if "export" not in texts:
            refused = guest.run(["modprobe", MODULE, "backend=export"], timeout_s=20)
            assert refused.status != 0
            assert "backend=export is not built in" in kernel_log(guest)
    assert len(set(texts.values())) == 1
    assert len(texts) == (2 if image.is_ours(guest.kernel) else 1)
