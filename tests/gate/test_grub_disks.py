"""The guard on each kind of disk, made by Debian's tools in a guest: what it says, what GRUB does.

tests/gate/disks.sh is the guest's init.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.run import run
from tests.gate import alone
from tests.gate.alone import Boot, Installed
from tests.gate.guarded import NEW, STOCK, TRIAL

# A guest makes each kind of disk, which takes minutes.
pytestmark = pytest.mark.long

# Kinds of disks, each with the places of their disks; "cut" runs the guard's commands.
_KINDS = {"btrfs": 1, "lvm": 1, "md": 2, "ext4 cut": 1, "xfs cut": 1}
_GUEST_TIMEOUT_S = 1800.0
_SCRIPT = Path(__file__).with_name("disks.sh")


@dataclass
class Seen:
    """The answers of a guest about one kind of disk, and the disk itself."""

    disks: list[Path]
    lines: list[str] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)  # by the step after which it was made


@pytest.fixture(scope="module")
def kinds(
    guarded: Installed, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Seen]]:
    """Each kind of disk, made in one guest."""
    home = tmp_path_factory.mktemp("disks")
    stock = request.config.getoption("server")
    release = next((stock / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    seen, disks = {}, []
    for name, count in _KINDS.items():
        places = [home / f"{name.replace(' ', '-')}-{number}.disk" for number in range(count)]
        for path in places:
            alone.divide(path, [(0x83, 320)])
        seen[name] = Seen(places)
        disks += places
    root = _root_disk(guarded, stock, release, home)
    current, log = Seen([]), (home / "guest.log").open("w")

    def on_line(line: str) -> None:
        nonlocal current
        log.write(f"{line}\n")
        log.flush()
        if (found := re.match(r"@begin (.*)", line)) is not None:
            current = seen[found[1].strip()]
        elif (found := re.match(r"@cut \S+ (.*)", line)) is not None:
            copy = current.disks[0].with_suffix(f".{found[1]}")
            run(["cp", "--sparse=always", current.disks[0], copy], timeout_s=60)
            current.copies[found[1]] = copy
        elif (found := re.match(r"([a-z]+): (.*)", line)) is not None:
            current.status.setdefault(found[1], found[2])
        current.lines.append(line)

    words = "root=/dev/vda rootfstype=ext4 rw console=ttyS0 quiet loglevel=4 init=/disks.sh"
    with log:
        alone.guest(
            [root, *disks],
            stock / f"boot/vmlinuz-{release}",
            stock / f"boot/initrd.img-{release}",
            words,
            timeout_s=_GUEST_TIMEOUT_S,
            on_line=on_line,
        )
    text = (home / "guest.log").read_text()
    assert "@done" in text, text[-4000:]
    assert "@failed" not in text, text
    yield seen
    fs.remove_tree(home)


def _root_disk(one: Installed, stock: Path, release: str, home: Path) -> Path:
    """Write the guest's own disk: the server's tree with the modules of Debian's kernel."""
    tree = one.tree
    for path in [*(tree / "boot").glob("*6.1.0*"), *(tree / "boot").glob("cplayground-*")]:
        path.unlink() if path.is_file() else fs.remove_tree(path)
    (tree / "boot/grub/grub.cfg").unlink()
    fs.remove_tree(tree / "var/lib/cplayground-guard")
    one.plant(STOCK)
    (tree / "new/boot").mkdir(parents=True)
    alone.plant(tree / "new/boot", NEW, one.code)
    (tree / "new/release").write_text(NEW)
    (tree / "etc/disks").write_text("".join(f"{kind}\n" for kind in _KINDS))
    shutil.copy(_SCRIPT, tree / "disks.sh")
    modules = tree / f"lib/modules/{release}"
    shutil.copytree(stock / f"lib/modules/{release}", modules, symlinks=True)
    disk = home / "root.disk"
    run(["mke2fs", "-q", "-t", "ext4", "-d", tree, disk, "1G"], timeout_s=300)
    return disk


def _boot(seen: Seen, copy: str = "") -> Boot:
    disk, *more = seen.disks
    return alone.boot(seen.copies[copy] if copy else disk, more=more)


def _force(seen: Seen) -> None:
    """Write the next entry to the disk, as though the guard had not refused."""
    block = b"# GRUB Environment Block\n"
    wanted = block + f"guard_good={STOCK}\nguard_trial={NEW}\nnext_entry=1>2\n".encode()
    for disk in seen.disks:
        content = disk.read_bytes()
        found = [one.start() for one in re.finditer(re.escape(block), content)]
        with disk.open("r+b") as stream:
            for at in found:
                if content[at : at + 1024].endswith(b"#"):
                    stream.seek(at)
                    stream.write(wanted.ljust(1024, b"#"))


@pytest.mark.parametrize(
    ("kind", "reason"), [("btrfs", "btrfs"), ("lvm", "lvm"), ("md", "mdraid1x|diskfilter")]
)
def test_where_grub_saves_nothing_the_machine_is_left_alone(
    kinds: dict[str, Seen], kind: str, reason: str
) -> None:
    seen = kinds[kind]
    assert seen.status["state"] == "unsupported", seen.lines
    assert re.search(reason, seen.status["reason"]), seen.status
    assert "@exit 3" in seen.lines
    assert "@arm 3" in seen.lines
    before = [_boot(seen) for _ in range(2)]
    # Debian's first entry is the newest kernel; the guard has changed nothing.
    assert before[0].cmdline == before[1].cmdline
    assert before[0].kernel == NEW
    assert TRIAL not in before[0].words
    # The reason: an entry for one boot would be started at each boot.
    _force(seen)
    stayed = [_boot(seen) for _ in range(2)]
    assert stayed[0].kernel == stayed[1].kernel
    assert stayed[0].cmdline == stayed[1].cmdline != before[0].cmdline


@pytest.mark.parametrize("kind", ["ext4 cut", "xfs cut"])
def test_a_power_cut_right_after_a_command(kinds: dict[str, Seen], kind: str) -> None:
    """GRUB replays no journal, so it may see the files as they were before the command."""
    seen = kinds[kind]
    assert seen.status["state"] == "good", seen.lines
    found = {step: [_boot(seen, step) for _ in range(2)] for step in seen.copies}
    for step, boots in found.items():
        for one in boots:
            assert one.kernel, (step, one.console)
            assert one.initrd == f"initrd of {one.kernel}", (step, one)
    assert [one.kernel for one in found["prepared"]] == [STOCK] * 2
    # Tried now or later, and once at most.
    assert found["armed"][1].kernel == STOCK or found["armed"][0].kernel == STOCK, found
    tried = [one for one in found["armed"] if TRIAL in one.words]
    assert len(tried) <= 1
