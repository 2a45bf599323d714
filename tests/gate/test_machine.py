"""The gate's harness with real servers: each way in which a boot can fail is told from the others.

docs/reference/server.md lists the evidence; tests/unit/test_gate_machine.py has the cheaper faults.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from kbuild.gate import machine, wire
from kbuild.gate.machine import Command
from kbuild.gate.wire import Wire
from kbuild.guest.outcome import Outcome
from kbuild.guest.spec import ServerSpec
from tests.gate.conftest import BROKEN

_FETCH = "/usr/lib/apt/apt-helper download-file {url} /root/fetched && cat /root/fetched"
# Print the addresses that answer: of the host, of QEMU, and of others.
_PROBE = (
    "for at in 10.0.2.2/80 10.0.2.2/22 10.0.2.2/9 10.0.2.3/53 127.0.0.1/22 192.0.2.1/80; do"
    ' timeout 20 bash -c ": </dev/tcp/$at" 2>/dev/null && echo $at; done; true'
)


def test_a_server_keeps_what_it_wrote_and_shows_what_failed(
    stock: ServerSpec, network: Wire, tmp_path: Path
) -> None:
    """One server, booted twice from its own disk: it reboots by itself, then a unit fails."""
    kept = machine.keep_changes(stock.disk, tmp_path / "changes.qcow2")
    spec = dataclasses.replace(stock, changes=kept)
    first = machine.boot(
        spec,
        [
            # Without a stand-in, Debian's own tool finds the disk as the tree's menu names it.
            Command(("sh", "-c", "cp /boot/grub/grub.cfg /root/old && update-grub"), 60.0),
            Command(("diff", "/root/old", "/boot/grub/grub.cfg")),
            Command(("sh", "-c", _FETCH.format(url=f"{wire.URL}/Release"))),
            Command(("sh", "-c", _PROBE), 60.0),
            Command(("systemctl", "enable", BROKEN)),
            Command(("systemctl", "reboot"), status=None),
        ],
        workdir=tmp_path / "first",
    )
    # A reboot that nobody asked for is no orderly end.
    assert first.verdict.outcome is Outcome.NO_POWER_OFF, first.verdict
    assert (first.state, first.failed) == ("running", ())
    assert first.release
    assert re.search(rf"BOOT_IMAGE=\S*vmlinuz-{re.escape(first.release)} root=UUID=", first.cmdline)
    assert [one.status for one in first.results[:5]] == [0] * 5, first.results
    assert "Suite: gate" in first.results[2].text
    assert first.results[3].text.split() == ["10.0.2.2/80"]
    assert '"GET /Release HTTP/1.1" 200' in network.requests.read_text()

    second = machine.boot(spec, [Command(("cat", "/root/fetched"))], workdir=tmp_path / "second")
    assert second.verdict.outcome is Outcome.FAILED, second.verdict
    assert (second.state, second.failed) == ("degraded", (BROKEN,))
    assert any(BROKEN in reason for reason in second.verdict.reasons)
    assert second.results[0].text == "Suite: gate\n"


def test_a_crash_is_a_crash(stock: ServerSpec, tmp_path: Path) -> None:
    """The changes of the other test are not on this server's disk."""
    seen = machine.boot(
        stock,
        [
            Command(("test", "!", "-e", "/root/fetched")),
            Command(("sh", "-c", "echo c >/proc/sysrq-trigger")),
        ],
        workdir=tmp_path / "crash",
    )
    assert seen.verdict.outcome is Outcome.CRASHED, seen.verdict
    assert seen.results[0].status == 0
    assert "sysrq" in seen.console.read_text(errors="replace")
