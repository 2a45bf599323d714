"""The linters, and what must be true of every file that is committed.

A missing linter is a failure: a check that is skipped where its tool is absent proves
nothing on exactly the machine that needs it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
_LARGEST = 1 << 20  # bytes; what is larger belongs in the cache, not in the history
_BIN = Path(sys.executable).parent


def committed_files(project: Path = PROJECT) -> list[Path]:
    """List what git tracks or would track, ignored files left out.

    An empty repository is asked, because the project may be a tarball, lie inside another
    repository, or be a clone of another owner, which git refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        git = ["git", f"--git-dir={scratch}/.git", f"--work-tree={project}"]
        listing = ["ls-files", "-z", "--others", "--exclude-standard"]
        for arguments in (["init", "--quiet"], listing):
            output = subprocess.run(
                [*git, *arguments], cwd=project, capture_output=True, check=True, timeout=30
            ).stdout
    return [project / name for name in output.decode().split("\0") if (project / name).is_file()]


def test_the_files_of_a_tarball_are_known(tmp_path: Path) -> None:
    """A tarball has no repository, and must not be taken for a part of another one."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True, timeout=30)
    project = tmp_path / "project"
    for name in (".gitignore", "kbuild/run.py", "build/result", "kbuild/__pycache__/run.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("/build/\n__pycache__/\n")
    found = sorted(str(path.relative_to(project)) for path in committed_files(project))
    assert found == [".gitignore", "kbuild/run.py"]


def shell_scripts(files: list[Path]) -> list[Path]:
    """Pick the shell scripts, by name or by first line."""
    found = []
    for path in files:
        first = path.open("rb").readline(200)
        if path.suffix in (".sh", ".bash") or re.match(rb"#!.*\b(ba|da)?sh\b", first):
            found.append(path)
    return found


def lint(*argv: str | Path) -> None:
    program = str(argv[0])
    path = _BIN / program if (_BIN / program).exists() else shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is not on this machine: run ./inv, which installs it")
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


def plain(script: Path, scratch: Path) -> Path:
    """Return a script as it is, or a template as a script with words for its expressions."""
    if script.suffix != ".j2":
        return script
    text = re.sub(r"\{%.*?%\}|\{#.*?#\}", "", script.read_text(encoding="utf-8"), flags=re.DOTALL)
    copy = scratch / script.stem
    copy.write_text(re.sub(r"\{\{.*?\}\}", "word", text), encoding="utf-8")
    return copy


def test_shellcheck(tmp_path: Path) -> None:
    scripts = shell_scripts(committed_files())
    assert PROJECT / "inv" in scripts
    lint("shellcheck", "--", *(plain(script, tmp_path) for script in scripts))


def test_a_template_is_checked_too(tmp_path: Path) -> None:
    template = tmp_path / "postinst.j2"
    template.write_text("#!/bin/sh\n{% if x %}\nrm $1 {{ release }}\n{% endif %}\n")
    with pytest.raises(pytest.fail.Exception, match="SC2086"):
        lint("shellcheck", "--", *(plain(s, tmp_path) for s in shell_scripts([template])))


def test_codespell() -> None:
    own = [p for p in committed_files() if p.name != "COPYING" and p.suffix != ".patch"]
    lint("codespell", "--ignore-words-list=caf,filp,fpr,inv,parm", *own)


def test_a_linter_that_is_missing_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"run \./inv"):
        lint("no-such-linter")


def test_a_linter_that_complains_fails(tmp_path: Path) -> None:
    script = tmp_path / "bad"
    script.write_text("#!/bin/sh\nrm $1\n")
    assert shell_scripts([script]) == [script]
    with pytest.raises(pytest.fail.Exception, match="SC2086"):
        lint("shellcheck", "--", script)


def configured_hosts(places: list[Path]) -> set[str]:
    """Read the host names of package mirrors and indexes out of apt's and pip's files."""
    hosts: set[str] = set()
    for place in places:
        files = [p for p in place.rglob("*") if p.is_file()] if place.is_dir() else [place]
        for path in files:
            if path.is_file():
                text = path.read_text(errors="replace")
                hosts.update(re.findall(r"\bhttps?://(?:[^\s/@]*@)?([\w.-]+\.[a-z]{2,})", text))
    return hosts


def naming(hosts: set[str], files: list[Path]) -> list[str]:
    """List where a file names one of ``hosts``."""
    return [
        f"{path}: {host}"
        for path in files
        for host in sorted(hosts)
        if host.encode() in path.read_bytes()
    ]


def test_no_mirror_is_named() -> None:
    places = [
        Path("/etc/apt/sources.list"),
        Path("/etc/apt/sources.list.d"),
        Path("/etc/apt/mirrors"),
        Path("/etc/pip.conf"),
        Path.home() / ".config/pip/pip.conf",
        Path.home() / ".pip/pip.conf",
    ]
    # Those that Debian and PyPI use by default are known without any configuration.
    usual = {f"{name}.debian.org" for name in ("deb", "security", "ftp", "snapshot", "archive")}
    usual |= {"pypi" + ".org", "files." + "pythonhosted.org"}
    assert not naming(configured_hosts(places) | usual, committed_files())


def test_a_named_mirror_is_found(tmp_path: Path) -> None:
    sources = tmp_path / "sources.list.d"
    sources.mkdir()
    (sources / "a.sources").write_text("URIs: http://user:pw@mirror.example.net/debian\n")
    (tmp_path / "pip.conf").write_text("index-url = https://index.example.net:8080/simple\n")
    hosts = configured_hosts([sources, tmp_path / "pip.conf", tmp_path / "missing"])
    assert hosts == {"mirror.example.net", "index.example.net"}
    guilty = tmp_path / "guilty.py"
    guilty.write_text("URL = 'http://mirror.example.net/'\n")
    assert naming(hosts, [guilty]) == [f"{guilty}: mirror.example.net"]


def oversized(files: list[Path]) -> list[Path]:
    return [path for path in files if path.stat().st_size > _LARGEST]


def test_no_large_file() -> None:
    assert not oversized(committed_files())


def test_a_large_file_is_found(tmp_path: Path) -> None:
    large = tmp_path / "vmlinuz"
    with large.open("wb") as stream:
        stream.truncate(_LARGEST + 1)
    assert oversized([large]) == [large]


def test_no_left_over_notes() -> None:
    words = re.compile(rb"\b(TO" + rb"DO|FIX" + rb"ME|XX" + rb"X)\b")
    own = [p for p in committed_files() if p.suffix in {".py", ".c", ".h", ".sh", ".md"}]
    assert not [p for p in own if words.search(p.read_bytes())]
