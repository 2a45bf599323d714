"""The archive's directory: only one that is ours, closed to others, and that clean leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild import cleaning
from kbuild.archive import operations, place
from kbuild.core import fs, places
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Settings
from tests.unit import releases

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def given(tmp_path: Path) -> Settings:
    return releases.settings(tmp_path)


def use(given: Settings) -> None:
    with place.writing(given):
        pass


def refusal(given: Settings, words: str) -> UserError:
    """Return what a writer and a reader say alike; nothing may have changed."""
    home = given.archive.parent
    before = sorted(home.rglob("*"))
    errors = []
    for action in (use, operations.releases, lambda given: place.check(given)):
        with pytest.raises(UserError, match=words) as caught:
            action(given)
        errors.append(caught.value)
    assert sorted(home.rglob("*")) == before
    assert len({str(error) for error in errors}) == 1
    return errors[0]


def test_it_is_made_with_its_mark_and_is_no_cache(given: Settings) -> None:
    assert not place.check(given)
    assert operations.releases(given) == ()
    assert not given.archive.exists()
    use(given)
    assert place.check(given)
    assert json.loads((given.archive / "archive.json").read_text())["format"] == 1
    assert [path.name for path in given.archive.iterdir()] == ["archive.json"]
    assert stat.S_IMODE(given.archive.stat().st_mode) == 0o755
    use(given)


def test_an_empty_directory_becomes_ours(given: Settings) -> None:
    (given.archive / "lost+found").mkdir(parents=True)
    use(given)
    assert place.check(given)


@pytest.mark.parametrize("name", ["thesis.tex", "CACHEDIR.TAG", "pool"])
def test_a_directory_with_other_files_is_refused(given: Settings, name: str) -> None:
    given.archive.mkdir()
    (given.archive / name).write_text("precious")
    error = refusal(given, "files that we did not make")
    assert name in (error.found or "")
    assert "INVOKE_ARCHIVE_DIR" in (error.hint or "")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "x"}'])
def test_a_mark_without_a_format_is_refused(given: Settings, text: str) -> None:
    given.archive.mkdir()
    (given.archive / "archive.json").write_text(text)
    refusal(given, "does not name the format")


@pytest.mark.parametrize("key", ["build", "cache", "keys"])
@pytest.mark.parametrize("below", [True, False])
def test_it_may_not_overlap_with_other_directories(
    given: Settings, tmp_path: Path, key: str, below: bool
) -> None:
    other = tmp_path / "other"
    archive = other / "archive" if below else other
    changed = {key: other if below else other / "inner", "archive": archive}
    refusal(dataclasses.replace(given, **changed), f"archive_dir and {key}_dir overlap")  # type: ignore[arg-type]


def around_the_checkout(given: Settings) -> Path:
    return given.project.parent


def in_a_part_of_the_checkout(given: Settings) -> Path:
    return given.project / "kmod" / "archive"


def below_a_file(given: Settings) -> Path:
    (given.archive.parent / "file").write_text("")
    return given.archive.parent / "file" / "archive"


@pytest.mark.parametrize("where", [around_the_checkout, in_a_part_of_the_checkout, below_a_file])
def test_other_positions_that_are_refused(
    given: Settings, where: Callable[[Settings], Path]
) -> None:
    with pytest.raises(UserError, match="archive_dir is"):
        use(dataclasses.replace(given, archive=where(given)))


@pytest.mark.parametrize("mode", [0o777, 0o775])
@as_root
def test_a_directory_that_others_may_write_to_is_refused(given: Settings, mode: int) -> None:
    given.archive.mkdir()
    given.archive.chmod(mode)
    os.chown(given.archive, 0, 65534)
    refusal(given, "which other users may change")


def test_clean_leaves_it(given: Settings) -> None:
    own = dataclasses.replace(given, project=given.archive.parent / "project")
    own.project.mkdir()
    with places.held(own):
        (own.build / "result").write_text("x")
        (own.cache / "files").mkdir()
    use(own)
    before = sorted(own.archive.rglob("*"))
    cleaning.clean(own, cache=True)
    assert not own.build.exists()
    assert sorted(own.archive.rglob("*")) == before


def test_many_writers_make_it_once(given: Settings) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom kbuild.archive import place\n"
        "from tests.unit import releases\n"
        "with place.writing(releases.settings(Path(sys.argv[1]), Path('/nonexistent'))): pass\n"
    )
    argv = [sys.executable, "-c", code, str(given.archive.parent)]
    writers = [subprocess.Popen(argv) for _ in range(4)]
    assert [one.wait(timeout=100) for one in writers] == [0] * 4
    assert [path.name for path in given.archive.iterdir()] == ["archive.json"]


def test_a_second_writer_says_what_it_waits_for(
    given: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = fs.lock
    monkeypatch.setattr(fs, "lock", lambda *args, **given: original(*args, timeout_s=0.1, **given))
    with (
        place.writing(given),
        caplog.at_level("INFO"),
        pytest.raises(InfrastructureError, match=r"another run has held .*archive\.json"),
        place.writing(given),
    ):
        pass
    assert "waiting for another run" in caplog.text


def test_readers_do_not_wait_for_each_other(given: Settings) -> None:
    use(given)
    with place.reading(given) as one, place.reading(given) as other:
        assert one == other == given.archive
