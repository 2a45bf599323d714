"""The tool on other Pythons than this machine's: Debian 11's, and the one of the kernel's suite.

The commands run in roots, without a guest.  Only the tool's own package is there besides Debian's
Python, because a bind hides all others.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from cplayground import parse
from kbuild.core import run, sandbox
from kbuild.core.model import Root, Settings
from kbuild.core.run import Arg, Completed
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.ship.tool_package import files
from tests.unit.namespaces import inside

PROJECT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((PROJECT / "cplayground/cplayground-1.schema.json").read_text("ascii"))
TEXTS = PROJECT / "tests"
STORIES = sorted((TEXTS / "stories").glob("*.procfile"))
CONFORMANCE = sorted((TEXTS / "conformance").glob("*.procfile"))
REFUSED = sorted((TEXTS / "conformance").glob("refused*/*.procfile"))
LIBRARY = "usr/lib/python3/dist-packages"
TIMEOUT_S, SOON_S = 300, 60
OK, FOUND, USAGE, NO_MODULE, REFUSED_TEXT = 0, 1, 2, 3, 5
WALK_JSON = ("--walk", "json")

# Run command lines one after the other: the start of a Python takes longer than a command.
# OUT/ in a command line is an empty directory, whose files are part of the answer.
MANY = """
import contextlib, io, json, sys, tempfile
from pathlib import Path
from cplayground import cli

def answer(words):
    said, told = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as out:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            status = cli.main([word.replace("OUT/", out + "/") for word in words])
        written = [one.read_text("utf-8") for one in Path(out).iterdir()]
    return [status, said.getvalue(), told.getvalue(), *written]

json.dump([answer(words) for words in json.loads(sys.argv[1])], sys.stdout)
"""
IMPORT = """
import importlib, json, pkgutil, sys
import cplayground
names = [one.name for one in pkgutil.walk_packages(cplayground.__path__, "cplayground.")]
for name in names:
    importlib.import_module(name)
json.dump([sys.version_info[:2], sorted(names)], sys.stdout)
"""
# Use the library as a program would: two texts, and sixty processes, which are drawn as cards.
LIBRARY_USE = r"""
import sys
import cplayground
from cplayground import drawing

before, after = map(cplayground.read, sys.argv[1:])
for one in (before.pipes(), before.shared(), before.check(), before.svg()):
    print(one)
print(before.diff(after), after.diff(before), before.container(before.processes[0].namespace))
many = b"".join(
    b"%s\t%d\t%d\t0\t1\tworker\n" % (b"ab"[pid % 2 :][:1] * 64, pid, pid)
    + b"0\t0\t%064x\t0\t00\tpipe:[%d]\n1\t0\t%s\t7\t01\t/log\n\n" % (pid, pid // 2, b"c" * 64)
    for pid in range(100, 160)
)
for draw in (drawing.svg, drawing.html, drawing.dot):
    print(draw(cplayground.parse(many)))
"""
ENDLESS = """
import time
while True:
    with open("mark"):
        os.write(mark, b"x" * 1000)
        time.sleep(0.1)
    time.sleep(0.1)
"""


@pytest.fixture(scope="module", params=["oldest", "suite"])
def root(request: pytest.FixtureRequest, settings: Settings, suite: str) -> Root:
    """A root with Debian's Python: the oldest that the tool runs on, or that of the suite."""
    if request.param == "oldest":
        return roots.oldest_python_root(settings)
    return roots.compile_root(settings, suite)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the tool's package, and the program that starts it."""
    top = tmp_path_factory.mktemp("package")
    for path, place in files(PROJECT).items():
        (top / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / path, top / place)
    shutil.copytree(PROJECT / "debian/cplayground/start", top / "usr/bin")
    (top / "usr/bin/cplayground").chmod(0o755)  # debhelper does so in the package
    return top


def binds(package: Path) -> Iterator[Bind]:
    yield Bind(package / LIBRARY, f"/{LIBRARY}")
    yield Bind(package / "usr/bin", "/usr/local/bin")
    yield Bind(TEXTS, "/mnt/tests")


@pytest.fixture
def there(root: Root, package: Path) -> Callable[..., Completed]:
    """Run a command in the root, where the texts are in the current directory."""

    def enter(*argv: str) -> Completed:
        done = sandbox.enter(
            root,
            argv,
            timeout_s=TIMEOUT_S,
            binds=[*binds(package)],
            cwd="/mnt/tests",
            check=False,
        )
        # The sandbox tells of a file system that cannot map ids.
        told = (line for line in done.stderr.splitlines(True) if not line.startswith("sandbox: "))
        return replace(done, stderr="".join(told))

    return enter


@pytest.fixture
def outside(root: Root, package: Path) -> Callable[..., Completed]:
    """Run a command in the root with the host's processes, which the sandbox does not show."""
    command: list[Arg] = [run.need("bwrap"), "--ro-bind", root.path, "/", "--dev", "/dev"]
    command += ["--ro-bind", "/proc", "/proc", "--tmpfs", "/mnt", "--unshare-net"]
    for bind in binds(package):
        command += ["--ro-bind", bind.source, bind.target]
    command += ["--die-with-parent", "--"]
    return lambda *argv: run.run([*command, *argv], timeout_s=TIMEOUT_S, check=False)


def here(*argv: str) -> Completed:
    """Run this machine's Python with the checkout's tool, where the texts are."""
    return run.run(
        [sys.executable, *argv],
        timeout_s=TIMEOUT_S,
        cwd=TEXTS,
        env={"PYTHONPATH": str(PROJECT)},
        check=False,
    )


def answers(done: Completed) -> list[Any]:
    assert (done.returncode, done.stderr) == (OK, "")
    return list(json.loads(done.stdout))


def commands(text: Path) -> Iterator[list[str]]:
    """Yield the commands that can look at a kept text."""
    shown: list[list[str]] = [["ls"], ["ls", "-l"], ["ps"], ["shared"], ["shared", "--across"]]
    shown += [["pipe", pipe.path.text] for pipe in parse(text.read_bytes()).pipes()]
    shown += [["check"], ["check", "--strict"], ["json"], ["json", "--lines"], ["draw"]]
    shown += [["draw", "-o", f"OUT/picture.{form}"] for form in ("svg", "html", "dot")]
    shown += [["draw", "--all"], ["ls", "--kind", "pipe,socket"], ["ps", "--command", "s*"]]
    for words in shown:
        yield [*words, "--from", str(text.relative_to(TEXTS))]


def test_every_module_is_imported_with_the_standard_library_only(
    there: Callable[..., Completed], root: Root
) -> None:
    done = there("python3", "-W", "error", "-c", IMPORT)
    assert (done.returncode, done.stderr) == (OK, "")
    version, names = json.loads(done.stdout)
    paths = [path for path in files(PROJECT) if path.suffix == ".py"]
    expected = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    assert {*names, "cplayground"} == expected
    if root.suite == "bullseye":
        control = (PROJECT / "debian/cplayground/control.j2").read_text("utf-8")
        assert f"python3 (>= {version[0]}.{version[1]})" in control


def compare(there: Callable[..., Completed], lines: Sequence[Sequence[str]]) -> list[Any]:
    """Run command lines on both Pythons, and return the answers, which must be equal."""
    program = (MANY, json.dumps(lines))
    ours, theirs = answers(here("-c", *program)), answers(there("python3", "-c", *program))
    assert len(ours) == len(theirs) == len(lines)
    for words, one, other in zip(lines, ours, theirs, strict=True):
        assert other == one, words
    return theirs


def test_the_commands_say_of_the_stories_what_they_say_here(
    there: Callable[..., Completed],
) -> None:
    lines = [words for story in STORIES for words in commands(story)]
    found = {
        tuple(words): answer for words, answer in zip(lines, compare(there, lines), strict=True)
    }
    for story in STORIES:
        name = str(story.relative_to(TEXTS))
        kept = story.with_suffix(".json").read_text("ascii")
        assert found["json", "--from", name] == [OK, kept, ""]
        for form in ("svg", "html", "dot"):
            status, said, told, picture = found["draw", "-o", f"OUT/picture.{form}", "--from", name]
            assert (status, said, told) == (OK, "", "") and picture


def test_texts_are_read_and_refused_as_here(there: Callable[..., Completed]) -> None:
    lines = [["json", "--from", str(one.relative_to(TEXTS))] for one in (*CONFORMANCE, *REFUSED)]
    statuses = [status for status, *_ in compare(there, lines)]
    assert statuses[: len(CONFORMANCE)] == [OK] * len(CONFORMANCE)
    assert statuses.count(REFUSED_TEXT) > 40


def test_the_library_gives_what_it_gives_here(there: Callable[..., Completed]) -> None:
    program = (LIBRARY_USE, "stories/story.procfile", "stories/redirect.procfile")
    theirs, ours = there("python3", "-c", *program), here("-c", *program)
    assert (theirs.returncode, theirs.stderr) == (OK, "")
    assert theirs.stdout == ours.stdout
    assert theirs.stdout.count("</svg>") == 3


def test_completion_says_what_it_says_here(there: Callable[..., Completed]) -> None:
    lines = [["__complete", *words] for words in ([""], ["ls", "-"], ["ls", "--kind", ""], ["p"])]
    assert all(said for _, said, _ in compare(there, lines))


def test_help_has_the_words_that_it_has_here(there: Callable[..., Completed]) -> None:
    # argparse titles its own options in two ways, and writes -p PID, --pid PID or -p, --pid PID.
    def words(text: str) -> set[str]:
        own = {"optional", "arguments", "options"}
        return {word.strip("[],:.") for word in text.split()} - own

    for command in ("ls", "draw", "watch", "json", "doctor"):
        theirs = there("cplayground", command, "--help")
        assert (theirs.returncode, theirs.stderr) == (OK, "")
        ours = here("-m", "cplayground", command, "--help")
        assert words(theirs.stdout) == words(ours.stdout)
        assert "--version" in theirs.stdout


def test_the_program_ends_with_the_statuses_of_its_manual(
    there: Callable[..., Completed],
) -> None:
    story, bad = "stories/story.procfile", f"{REFUSED[0].relative_to(TEXTS)}"
    for status, words in (
        (OK, ["ls", "--from", story]),
        (OK, ["--version"]),
        (USAGE, ["list"]),
        (USAGE, ["--bogus"]),
        (USAGE, ["--color", "x"]),
        (USAGE, ["draw", "-o", "x.png", "--from", story]),
        (NO_MODULE, ["ls"]),
        (NO_MODULE, ["doctor"]),
        (REFUSED_TEXT, ["ls", "--from", bad]),
    ):
        done = there("cplayground", *words)
        assert done.returncode == status, (words, done)
        assert "Traceback" not in done.stderr
        if words[0] != "doctor":
            assert done.stderr.startswith("cplayground: ") == (status != OK)


def test_watch_writes_lines_of_the_schema(there: Callable[..., Completed]) -> None:
    done = there("sh", "-c", "cplayground --walk watch --json 0.1 | head -n 3")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["type"] for one in lines] == ["watch", "reading", "reading"]
    for one in lines:
        jsonschema.Draft202012Validator(SCHEMA).validate(one)


def of_programs(document: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    """Return the processes that hold a file, with numbers that others' files do not change."""
    numbers: dict[int, int] = {}
    chosen = []
    for process in document["processes"]:
        if any(one["path"] == mark for one in process["descriptors"]):
            del process["container"]
            for one in process["descriptors"]:
                one["file"] = numbers.setdefault(one["file"], len(numbers))
            chosen.append(process)
    return chosen


def test_the_walk_sees_what_it_sees_here(outside: Callable[..., Completed], tmp_path: Path) -> None:
    with inside(
        tmp_path, "os.pipe(), socket.socketpair(), child(lambda: None), rest()"
    ) as programs:
        mark = programs.mark.decode()
        theirs, ours = outside("cplayground", *WALK_JSON), here("-m", "cplayground", *WALK_JSON)
    assert (theirs.returncode, theirs.stderr) == (OK, "")
    first, second = of_programs(json.loads(theirs.stdout), mark)
    assert [first, second] == of_programs(json.loads(ours.stdout), mark)
    assert len(first["descriptors"]) >= 8


def test_a_missing_close_is_found_and_drawn(
    outside: Callable[..., Completed], tmp_path: Path
) -> None:
    stuck = "reading, writing = os.pipe()\nprint('ready', flush=True)\nos.read(reading, 1)"
    with inside(tmp_path, stuck) as programs:
        (process,) = programs.walk().processes
        chosen = ["--walk", "-p", str(process.global_pid)]
        check = ("check", "--strict")
        deadline = time.monotonic() + SOON_S
        # It says that it is ready before it reads.  A host's process that not even root may look
        # into makes a warning of the error.
        while (theirs := outside("cplayground", *chosen, *check)).returncode != FOUND:
            assert time.monotonic() < deadline, theirs
        ours = here("-m", "cplayground", *chosen, *check)
        picture = outside("cplayground", *chosen, "draw", "-o", "-")
    assert theirs.stderr == picture.stderr == ""
    # The evidence counts the host's processes, which come and go.
    (_, sentence), (_, same) = (one.stdout.split("\n")[0].split(": ", 1) for one in (theirs, ours))
    assert sentence == same
    assert process.descriptors[-1].path.text in sentence
    assert "waits for the end" in sentence and "waits for the end" in picture.stdout


def test_watch_tells_changes(outside: Callable[..., Completed], tmp_path: Path) -> None:
    program = f"print('ready', flush=True)\n{ENDLESS}"
    with inside(tmp_path, program) as programs:
        (process,) = programs.walk().processes
        watch = f"cplayground --walk -p {process.global_pid} watch --json 0.05"
        line = outside("sh", "-c", f"{watch} | grep -m1 moved").stdout
        text = outside("sh", "-c", f"{watch.replace(' --json', '')} | grep -m1 moved").stdout
    change = json.loads(line)
    jsonschema.Draft202012Validator(SCHEMA).validate(change)
    assert change["global_pid"] == process.global_pid
    assert "/mark" in text
