"""What is held against a request before anything is done for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild import request
from kbuild.errors import UserError
from kbuild.model import Settings, Target


def settings(path: Path, *, build: str = "build", cache: str = "cache") -> Settings:
    project = path / "project"
    project.mkdir(exist_ok=True)
    return Settings(project=project, build=path / build, cache=path / cache)


def test_a_usual_request_is_let_through(tmp_path: Path) -> None:
    request.check_places(settings(tmp_path))
    request.check_target(Target("bookworm", "lab", "debug", version="6.1.192-2"))
    request.check_target(Target("all", "cloud-amd64"), every=True)
    request.check_choice("accel", "tcg")
    request.check_choice("accel", None)
    request.check_choice("command", "anything")


@pytest.mark.parametrize("place", [".", "project"])
def test_what_clean_removes_holds_no_checkout(tmp_path: Path, place: str) -> None:
    with pytest.raises(UserError, match=r"build_dir is .* which 'clean' would remove"):
        request.check_places(settings(tmp_path, build=place))
    with pytest.raises(UserError, match=r"cache_dir is .* which 'clean' would remove"):
        request.check_places(settings(tmp_path, cache=place))


def test_what_clean_removes_holds_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "cache/of/someone"))
    with pytest.raises(UserError, match="cache_dir is"):
        request.check_places(settings(tmp_path))
