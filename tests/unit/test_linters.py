"""The linters pass, and every committed file keeps the project's rules.

A missing linter is a failure: a check that is skipped where its tool is absent proves
nothing on the machine that needs it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
_LARGEST = 1 << 20  # bytes; larger files belong in the cache, not in the history
_BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """List what git tracks or would track; ignored files are left out.

    An empty repository is asked, because the project may be a tarball, lie inside another
    repository, or be a clone of another owner, which git refuses.
    """
    scratch = tmp_path_factory.mktemp("git")
    git = ["git", f"--git-dir={scratch}/.git", f"--work-tree={PROJECT}"]
    listing = ["ls-files", "-z", "--others", "--exclude-standard"]
    for arguments in (["init", "--quiet"], listing):
        output = subprocess.run(
            [*git, *arguments], cwd=PROJECT, capture_output=True, check=True, timeout=30
        ).stdout
    return [path for name in output.decode().split("\0") if (path := PROJECT / name).is_file()]


def lint(*argv: str | Path) -> None:
    """Run a linter of the virtual environment or of the machine; fail with what it prints."""
    program = str(argv[0])
    path = _BIN / program if (_BIN / program).exists() else shutil.which(program)
    assert path is not None, f"{program} is not on this machine: run ./inv, which installs it"
    done = subprocess.run(
        [str(path), *map(str, argv[1:])],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        pytest.fail(f"{program} complains:\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_check() -> None:
    lint("ruff", "check", "--no-cache", ".")


def test_ruff_format() -> None:
    lint("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.timeout(300)
def test_mypy() -> None:
    lint("mypy")


def is_shell(path: Path) -> bool:
    first = path.open("rb").readline(200)
    return path.suffix in (".sh", ".bash") or bool(re.match(rb"#!.*\b(ba|da)?sh\b", first))


def plain(script: Path, scratch: Path) -> Path:
    """Return a script as it is, or a template as a script with words for its expressions."""
    if script.suffix != ".j2":
        return script
    text = re.sub(r"\{%.*?%\}|\{#.*?#\}", "", script.read_text(encoding="utf-8"), flags=re.DOTALL)
    copy = scratch / script.stem
    copy.write_text(re.sub(r"\{\{.*?\}\}", "word", text), encoding="utf-8")
    return copy


def test_shellcheck(committed: list[Path], tmp_path: Path) -> None:
    scripts = [path for path in committed if is_shell(path)]
    assert PROJECT / "inv" in scripts
    lint("shellcheck", "--", *(plain(script, tmp_path) for script in scripts))


def test_codespell(committed: list[Path]) -> None:
    own = [p for p in committed if p.name != "COPYING" and p.suffix != ".patch"]
    lint("codespell", "--ignore-words-list=caf,filp,fpr,intoto,inv,parm", *own)


def test_no_mirror_is_named(committed: list[Path]) -> None:
    """A committed file names no mirror or package index, neither this machine's nor the usual."""
    places = [
        Path("/etc/apt/sources.list"),
        Path("/etc/apt/sources.list.d"),
        Path("/etc/apt/mirrors"),
        Path("/etc/pip.conf"),
        Path.home() / ".config/pip/pip.conf",
        Path.home() / ".pip/pip.conf",
    ]
    files = [p for place in places for p in (place, *place.rglob("*")) if p.is_file()]
    url = re.compile(r"\bhttps?://(?:[^\s/@]*@)?([\w.-]+\.[a-z]{2,})")
    hosts = {host for p in files for host in url.findall(p.read_text(errors="replace"))}
    hosts |= {f"{name}.debian.org" for name in ("deb", "security", "ftp", "snapshot", "archive")}
    hosts |= {"pypi" + ".org", "files." + "pythonhosted.org"}
    named = re.compile(b"|".join(re.escape(host.encode()) for host in sorted(hosts)))
    assert not [(path, found) for path in committed if (found := named.findall(path.read_bytes()))]


def test_no_large_file(committed: list[Path]) -> None:
    assert not [path for path in committed if path.stat().st_size > _LARGEST]


def test_no_left_over_notes(committed: list[Path]) -> None:
    words = re.compile(rb"\b(TO" + rb"DO|FIX" + rb"ME|XX" + rb"X)\b")
    own = [p for p in committed if p.suffix in {".py", ".c", ".h", ".sh", ".md"}]
    assert not [p for p in own if words.search(p.read_bytes())]
