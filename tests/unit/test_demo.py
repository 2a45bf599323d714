"""The demo: its steps in a guest, and how it fails if the guest shows something else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild import demo
from kbuild.core.model import PROCFILE, Settings, Target
from kbuild.guest import session
from kbuild.pipeline import images

TARGET = Target("bookworm", "cloud-amd64")
EXAMPLE = Path(demo.__file__).parents[1] / "cplayground/examples/words.c"


class Guest:
    """Stands in for a guest: notes the commands, and answers as the tool would."""

    def __init__(
        self,
        *,
        finds: Sequence[int] = (0, 1, 0),
        output: str = demo._SORTED,
        error: str = "error: ",
    ) -> None:
        self.error = error
        self.spec = SimpleNamespace(scale=1.0)
        self.ran: list[list[str]] = []
        self.finds = iter(finds)
        self.files = {
            PROCFILE: b"f" * 64
            + b"\t9\t1\t0\t0\twords\n\n"
            + b"f" * 64
            + b"\t10\t2\t1\t1\tsort\n\n",
            demo._SOURCE: EXAMPLE.read_bytes(),
            "/tmp/story.svg": b"<svg/>",
            "/tmp/story.html": b"<html/>",
            "/srv/sorted.txt": output.encode(),
        }

    def run(self, argv: list[str], **_: object) -> SimpleNamespace:
        self.ran.append(argv)
        status = next(self.finds) if argv[1:] == ["check"] else 0
        said = self.error if status else ""
        text = f"{said}{' '.join(argv)}: {status}\n"
        return SimpleNamespace(status=status, text=text, stderr=b"")

    def start(self, argv: list[str], **_: object) -> SimpleNamespace:
        self.ran.append(argv)
        note = self.ran.append
        return SimpleNamespace(
            write=lambda data: note(["write", data.decode()]),
            close_stdin=lambda: note(["end of input"]),
            wait=lambda *_, **__: note(["wait"]),
        )

    def put(self, content: bytes, remote: str, **_: object) -> None:
        self.files[remote] = content

    def read(self, remote: str) -> bytes:
        return self.files[remote]


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: Guest, *, dry: bool = False) -> str:
    """Run the demo with a guest, and return what it printed."""
    settings = Settings(
        project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache", dry=dry
    )

    @contextlib.contextmanager
    def judged(*_: object, **__: object) -> Iterator[Guest]:
        yield guest

    said: list[str] = []
    monkeypatch.setattr(images, "stock_image", lambda *_: None)
    monkeypatch.setattr(session, "judged", judged)
    answer = demo.run(settings, TARGET, accel=None, say=said.append)
    return "\n".join([*said, answer.summary])


def test_it_shows_each_view_and_leaves_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest()
    said = run(tmp_path, monkeypatch, guest)
    # The program, the file, the table, the finding, and the corrected program's output.
    parts = ("pipe(ends)", "f" * 12 + "\t9", "cplayground ls: 0", "check: 1", demo._SORTED)
    places = [said.index(part) for part in parts]
    assert places == sorted(places)
    assert "f" * 13 not in said
    for name in ("story.svg", "story.html"):
        assert (tmp_path / "build/demo" / name).read_bytes() == guest.files[f"/tmp/{name}"]
        assert str(tmp_path / "build/demo" / name) in said


@pytest.mark.parametrize(
    "guest", [Guest(finds=(0, 0)), Guest(finds=(1, 1), error="")], ids=["nothing", "crash"]
)
def test_it_fails_if_the_tool_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: Guest
) -> None:
    monkeypatch.setattr(demo, "_STUCK_S", 0.0)
    with pytest.raises(demo.DemoError, match="was not closed"):
        run(tmp_path, monkeypatch, guest)
    assert not (tmp_path / "build/demo").exists()


@pytest.mark.parametrize("guest", [Guest(output="pear\n"), Guest(finds=(1, 1))])
def test_it_fails_if_the_corrected_program_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: Guest
) -> None:
    with pytest.raises(demo.DemoError, match="corrected"):
        run(tmp_path, monkeypatch, guest)


def test_the_corrected_program_is_judged_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest()
    said = run(tmp_path, monkeypatch, guest)
    steps = [one[-1] for one in guest.ran]
    assert steps[steps.index("words-closed") :] == [
        *("words-closed", demo._WORDS, "check", "end of input", "wait"),
    ]
    assert "cplayground check: 0" in said


def test_it_fails_if_the_corrected_program_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_STUCK_S", 0.0)
    guest = Guest(finds=(1, 0))
    guest.files[PROCFILE] = b""
    with pytest.raises(demo.DemoError, match="does not start"):
        run(tmp_path, monkeypatch, guest)


def test_a_dry_run_boots_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest()
    assert "would boot" in run(tmp_path, monkeypatch, guest, dry=True)
    assert not guest.ran and not (tmp_path / "build").exists()
