"""Loading and unloading at any moment, and the module's parameters."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import pytest

from kbuild.core.model import MODULE, PROCFILE, Kernel
from kbuild.guest.guest import Guest
from kbuild.guest.outcome import Outcome
from kbuild.guest.programs import PLACE
from kbuild.guest.spec import Snapshot
from tests.vm.module import PEEK, kernel_log, listing, load, module_file, topology, unload
from tests.vm.slots import TAINT

CYCLES = 50  # twice as many as there may be namespaces: see reloads.c
WARN_TAINT = 1 << 9


def test_unloaded_while_open(guest: Guest) -> None:
    load(guest)
    script = f"""
        exec 7<{PROCFILE} 8<{PROCFILE}
        head -c 1 <&7 >/dev/null
        rmmod {MODULE} || exit 9
        cat <&7; echo "begun $?"
        cat <&8; echo "fresh $?"
        cat {PROCFILE}; echo "closed $?"
    """
    result = guest.run(["sh", "-c", script], timeout_s=20)
    assert result.text == "begun 1\nfresh 1\nclosed 1\n"
    errors = result.stderr.decode()
    assert errors.count("Input/output error") == 2, errors
    assert errors.count("No such file or directory") == 1, errors


def unpacked(guest: Guest) -> str:
    """Return the module's file, unpacked for finit_module(2): since trixie DKMS compresses some."""
    path = module_file(guest)
    if path.endswith(".ko"):
        return path
    assert path.endswith(".ko.xz")
    plain = f"/tmp/{MODULE}.ko"
    guest.put(lzma.decompress(guest.read(path)), plain, mode=0o644)
    return plain


def test_reloaded_under_readers(guest: Guest) -> None:
    """Reads and opens end in a defined way, and every reference is released."""
    group = "/sys/fs/cgroup/reloads"
    # The kernel charges memory in batches: 258 pages were seen on 7.3, 4 of them in slabs.
    # Leaked buffers would be 68 KiB for each cycle, 3.4 MB in all.
    most = 2 << 20
    script = f"""
        echo +memory >/sys/fs/cgroup/cgroup.subtree_control
        mkdir {group} && echo $$ >{group}/cgroup.procs &&
        {PLACE}/reloads {PROCFILE} {unpacked(guest)} {CYCLES} 2
        status=$?
        echo $$ >/sys/fs/cgroup/cgroup.procs
        exit $status
    """
    with topology(guest, "full-table", "200"):
        result = guest.run(["sh", "-c", script], timeout_s=120, check=True)
        # The kernel's message about an iterator that does not advance.
        assert "buggy .next function" not in kernel_log(guest)
    cycles, whole, absent, cut_off = (int(word) for word in result.text.split())
    print(result.text)
    assert cycles == CYCLES
    assert whole >= 2 * CYCLES
    assert absent >= 2 * CYCLES
    assert cut_off > 0
    # The readers' memory is charged to their cgroup, even after their end.
    text = guest.read(f"{group}/memory.stat").decode()
    stat = {name: int(value) for name, value in map(str.split, text.splitlines())}
    # Before Linux 5.18 the kernel's share is the total minus the rest.
    whole = int(guest.read(f"{group}/memory.current")) - stat["anon"] - stat["file"]
    kept = stat.get("kernel", whole) - stat["slab_reclaimable"]
    print(f"kept: {kept} bytes; {whole}, {stat}")
    assert kept < most
    guest.run(["rmdir", group], timeout_s=5, check=True)


def test_loaded_twice(loaded: Guest) -> None:
    result = loaded.run(["insmod", module_file(loaded)], timeout_s=20)
    assert result.status != 0
    assert b"File exists" in result.stderr
    assert listing(loaded) == ()


def test_the_name_is_taken(kernel: Kernel, kept: Snapshot, logs: Path) -> None:
    """A load fails and leaves nothing while another module has the name, which keeps it.

    The kernel itself warns, so this guest is judged here.
    """
    workdir = logs / "test_lifecycle" / f"{kernel.release}-name-taken"
    tries = 3
    with Guest.restore(kept, workdir=workdir, expected_taint=TAINT | WARN_TAINT) as guest:
        peek = PEEK.format(release=kernel.release)
        guest.run(["insmod", peek, f"name={MODULE}"], timeout_s=20, check=True)
        for _ in range(tries):
            result = guest.run(["modprobe", MODULE], timeout_s=20)
            assert result.status != 0
            assert b"Device or resource busy" in result.stderr
            gone = guest.run(["test", "-e", f"/sys/module/{MODULE}"], timeout_s=5)
            assert gone.status != 0
        said = kernel_log(guest)
        assert said.count(f"{PROCFILE} cannot be made: is the name taken, or no memory?") == tries
        assert guest.run(["test", "-e", PROCFILE], timeout_s=5).status == 0
        guest.run(["rmmod", "peek"], timeout_s=20, check=True)
        # The name is free again.
        load(guest)
        assert listing(guest) == ()
        unload(guest)
        reports = guest.reports()
        verdict = guest.shutdown()
    assert verdict.outcome is Outcome.WARNED, verdict
    assert [report.name for report in reports] == ["WARN"] * tries
    assert said.count(f"proc_dir_entry '/proc/{MODULE}' already registered") == tries


# Parameters.


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("backend=nonsense", "backend=nonsense is unknown"),
        ("fields=nonsense", "fields=nonsense is unknown; there are: basic, extended"),
        ("file_mode=0644", "file_mode=0644: must be read bits only"),
        ("file_mode=0", "file_mode=00: must be read bits only"),
        ("file_uid=4294967295", "file_uid=4294967295 file_gid=0: not a user and a group"),
        ("file_gid=4294967295", "file_uid=0 file_gid=4294967295: not a user and a group"),
    ],
)
def test_nonsense_is_refused(guest: Guest, parameter: str, message: str) -> None:
    """The original module took any user, and a mode without a bit."""
    result = guest.run(["modprobe", MODULE, parameter], timeout_s=20)
    assert result.status != 0
    assert message in kernel_log(guest)
    assert guest.run(["test", "-e", PROCFILE], timeout_s=5).status != 0


def documented(text: str) -> set[str]:
    """Return the parameters in the table under the heading "Parameters"."""
    section = text.partition("\n## Parameters\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_each_parameter_is_said_and_documented(
    loaded: Guest, request: pytest.FixtureRequest
) -> None:
    parameters = loaded.run(["modinfo", "-F", "parm", MODULE], timeout_s=10, check=True).text
    described = dict(line.split(":", 1) for line in parameters.splitlines())
    assert all(len(text) > 20 for text in described.values()), described
    assert all("(default: " in text for text in described.values()), described
    shown = loaded.run(["ls", f"/sys/module/{MODULE}/parameters"], timeout_s=5, check=True).text
    page = request.config.rootpath / "docs" / "reference" / "procfile.md"
    text = page.read_text(encoding="utf-8")
    assert set(described) == set(shown.split()) == documented(text)
