"""A server's tree: what runs in it, and what it keeps of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.core import run, sandbox, suites
from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.core.sandbox import Bind
from kbuild.gate import server
from kbuild.gate.server import Server

IN_ROOT = Path(server.__file__).with_name("in_root")
POLICY = "usr/sbin/policy-rc.d"


@pytest.fixture
def tree(tmp_path: Path) -> Root:
    root = tmp_path / "root"
    (root / "usr/sbin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("server\n")
    return Root("bookworm", root, "digest")


def test_a_copy_changes_nothing_of_its_tree_and_ends(tree: Root, tmp_path: Path) -> None:
    with server.copy(tree, tmp_path / "copy", log=tmp_path / "log") as made:
        (made.root.path / "etc/hostname").write_text("other\n")
    assert (tree.path / "etc/hostname").read_text() == "server\n"
    assert not (tmp_path / "copy").exists()


def command_of(
    made: Server, monkeypatch: pytest.MonkeyPatch, network: Path | None = None
) -> tuple[list[str], bool]:
    """Return the command line of a run in a tree, and whether services were forbidden then."""
    seen: list[tuple[list[str], bool]] = []

    def fake(argv: list[object], **_: object) -> None:
        seen.append(([str(word) for word in argv], (made.root.path / POLICY).exists()))

    monkeypatch.setattr(sandbox, "run", fake)
    made.run(["true"], binds=[Bind(Path("/x"), "/mnt/x")], network=network)
    return seen[0]


def test_a_tree_forbids_services_only_while_a_command_runs(
    tree: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.copy(tree, tmp_path / "copy", log=tmp_path / "log") as made:
        _, forbidden = command_of(made, monkeypatch)
        assert forbidden
        # A booted server would start nothing otherwise.
        assert not (made.root.path / POLICY).exists()

        def fails(*_: object, **__: object) -> None:
            raise BuildError("it failed")

        monkeypatch.setattr(sandbox, "run", fails)
        with pytest.raises(BuildError):
            made.run(["false"])
        assert not (made.root.path / POLICY).exists()


def test_a_tree_sees_the_archive_or_no_network(
    tree: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.copy(tree, tmp_path / "copy", log=tmp_path / "log") as made:
        alone, _ = command_of(made, monkeypatch)
        connected, _ = command_of(made, monkeypatch, Path("/proc/1/fd/9"))
    assert "--unshare-net" in alone
    assert "nsenter" not in alone
    assert "--unshare-net" not in connected
    assert connected[:3] == ["nsenter", "--net=/proc/1/fd/9", "--"]


@pytest.mark.parametrize("suite", sorted(suites.SUITES))
def test_each_suite_has_its_own_names(suite: str) -> None:
    plain, building = (server.packages(suite, dkms=dkms) for dkms in (False, True))
    assert {"grub-pc", "systemd-sysv", "initramfs-tools"} <= set(plain)
    assert set(plain) < set(building)
    assert "dkms" in building
    assert "gcc" not in plain
    wrong = {"libssl3"} if suite != "bookworm" else {"libssl1.1", "libssl3t64"}
    assert not wrong & set(building)


def ask(program: str, *words: str) -> run.Completed:
    env = {"SERVER_UUID": server.UUID, "SERVER_LABEL": server.LABEL}
    return run.run([IN_ROOT / program, *words], env=env, timeout_s=10, check=False)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        # As grub-mkconfig and its library ask.
        (("--target=device", "/boot"), "/dev/vda1"),
        (("--device", "/dev/vda1", "--target=fs_uuid"), server.UUID),
        (("-t", "fs", "/boot"), "ext2"),
        (("--device", "/dev/vda1", "--target=partmap"), "msdos"),
        (("--device", "/dev/vda1", "--target=hints_string"), ""),
        (("--target=abstraction", "--device", "/dev/vda1"), ""),
    ],
)
def test_grub_is_told_about_the_disk_to_come(words: tuple[str, ...], answer: str) -> None:
    said = ask("grub-probe", *words)
    assert (said.returncode, said.stdout.strip()) == (0, answer)


def test_a_question_without_an_answer_is_no_answer() -> None:
    said = ask("grub-probe", "--target=zfs_name", "/")
    assert said.returncode != 0
    assert "zfs_name" in said.stderr


def test_a_path_on_the_disk_is_the_path_in_the_tree() -> None:
    assert ask("grub-mkrelpath", "/boot/").stdout == "/boot\n"
