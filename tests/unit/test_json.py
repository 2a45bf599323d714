"""``--json``: one document on standard output, whatever the task prints and however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kbuild import answer, doctor, every_suite, testing
from kbuild.answer import Answer
from kbuild.cli import Command, command, say
from kbuild.core import errors, suites
from kbuild.core.errors import BuildError, EvidenceError
from kbuild.core.model import Base, BuiltKernel, Package, Series, Settings, Target, VerifiedFile
from kbuild.core.run import run
from kbuild.fetch import source
from kbuild.kernel.module import BuiltModule
from kbuild.options import JSON
from kbuild.pipeline import stages
from kbuild.pipeline.stage import Made, Step
from kbuild.report import kernels
from kbuild.report.kernels import KernelReport
from tests import commands_page
from tests.unit.command_line import PROJECT, Here, environment, here, invoke
from tests.unit.test_docs import first_column

__all__ = ["here"]

COMMON = {*answer.COMMON}
WITH_JSON = {name: one for name, one in commands_page.commands() if JSON in one.options}


def probing(body: Callable[[Settings], Answer | int | None]) -> Command:
    @command(JSON, name="things.probe")
    def probe(settings: Settings, target: Target) -> Answer | int | None:
        """Do what the test wants."""
        return body(settings)

    return probe


def asked(run_here: Here, *words: str, of: Command | None = None) -> tuple[int, Any, str]:
    status, out, err = run_here(*words, "--json", of=of)
    return status, json.loads(out), err


# Every document.


def test_only_the_document_is_on_standard_output(here: Here) -> None:
    @dataclass(frozen=True)
    class Thing:
        path: Path
        error: BuildError

    def body(settings: Settings) -> Answer:
        print("printed")
        say("said")
        run(["true"], timeout_s=10)
        # A program that writes to the task's own standard output, as pytest does.
        subprocess.run([sys.executable, "-c", "print('by a program')"], check=True)
        return Answer(
            data={"things": [Thing(Path("/a"), BuildError("no", hint="try"))]},
            text="for people",
            summary="probed: 1 thing",
            status=7,
        )

    status, found, err = asked(here, of=probing(body))
    assert status == 7
    assert found == {
        "format": 1,
        "task": "things.probe",
        "status": 7,
        "dry": False,
        "summary": "probed: 1 thing",
        "things": [
            {
                "path": "/a",
                "error": {
                    "kind": "build",
                    "what": "no",
                    "expected": None,
                    "found": None,
                    "log": None,
                    "do": "try",
                    "status": 3,
                },
            }
        ],
        "error": None,
    }
    assert {"printed", "said", "by a program"} <= set(err.splitlines())
    assert err.splitlines()[-1] == "probed: 1 thing"
    assert "for people" not in err


def test_without_the_option_there_is_text_and_the_state_is_its_last_line(here: Here) -> None:
    made = Answer(data={"n": 1}, text="one\ntwo\n", summary="probed: 2 things", status=7)
    assert here(of=probing(lambda _: made)) == (7, "one\ntwo\nprobed: 2 things\n", "")
    assert here(of=probing(lambda _: Answer())) == (0, "", "")


def test_a_failure_has_its_data_and_its_error(here: Here) -> None:
    failed = EvidenceError("none", expected="gate.json", found="nothing", log=Path("/log"))
    made = Answer(data={"cases": [1]}, text="case 1", summary="gated", error=failed)
    status, found, err = asked(here, of=probing(lambda _: made))
    assert (status, found["status"], found["cases"]) == (40, 40, [1])
    assert found["error"] == {
        "kind": "evidence",
        "what": "none",
        "expected": "gate.json",
        "found": "nothing",
        "log": "/log",
        "do": None,
        "status": 40,
    }
    assert found["summary"] is None
    assert err.startswith("evidence error: none\n")
    status, out, err = here(of=probing(lambda _: made))
    assert (status, out) == (40, "case 1\n")
    assert err.startswith("evidence error: none\n")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(BuildError("stop"), "build"), (ValueError("stop"), "internal"), (OSError(28, "x"), None)],
)
def test_an_exception_is_a_document_too(raised: Exception, kind: str | None, here: Here) -> None:
    def body(settings: Settings) -> None:
        raise raised

    status, found, _ = asked(here, of=probing(body))
    assert (status, found["error"]["kind"]) in ((3, kind), (70, kind), (69, "full disk"))
    assert found["status"] == found["error"]["status"] == status


def test_a_refused_request_is_a_document(here: Here) -> None:
    status, found, _ = asked(here, "explain", "--suite", "sid")
    assert (status, found["task"], found["error"]["kind"]) == (2, "explain", "usage")
    assert "dry" not in found


def test_a_status_makes_a_document_without_data(here: Here) -> None:
    status, found, _ = asked(here, of=probing(lambda _: 9))
    assert (status, set(found)) == (9, COMMON)


def test_names_of_any_bytes_and_passwords(here: Here) -> None:
    data = {"path": Path("/\udcff"), "urls": ("http://u:p@a.example", "x@b.example")}
    status, found, _ = asked(here, of=probing(lambda _: Answer(data=data)))
    assert status == 0
    assert found["path"] == "/\udcff"
    assert found["urls"] == ["http://***@a.example", "x@b.example"]


def test_no_task_may_hide_a_common_field(here: Here) -> None:
    status, found, _ = asked(here, of=probing(lambda _: Answer(data={"status": 0})))
    assert (status, found["error"]["kind"]) == (70, "internal")


def test_a_signal_ends_with_a_document(tmp_path: Path) -> None:
    program = (
        "from invoke.collection import Collection\n"
        "from kbuild.cli import command, program\n"
        "from kbuild.options import DEFAULTS, JSON\n"
        "import sys, time\n"
        "@command(JSON)\n"
        "def wait(settings, target):\n"
        "    print('ready', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "tasks = Collection(wait)\n"
        "tasks.configure(DEFAULTS)\n"
        "program(tasks).run(['inv', 'wait', '--json'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    found = json.loads(out)
    assert (found["status"], found["error"]["kind"]) == (143, "interrupted")


@pytest.mark.parametrize(("redirection", "status"), [(">/dev/full", 69), (">&-", 2), ("| true", 0)])
def test_an_output_that_cannot_be_written(redirection: str, status: int, tmp_path: Path) -> None:
    line = f'"$0" -m kbuild.cli explain --json {redirection}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable],
        cwd=PROJECT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


# The documents of the tasks.


def file(name: str) -> VerifiedFile:
    return VerifiedFile(name, "6.1.192-3", Path(f"/cache/{name}"), "a" * 64, 1)


BASE = Base(
    "bookworm",
    "cloud-amd64",
    "6.1.192-3",
    "6.1.0-57",
    ("ABCD",),
    file("source"),
    file("image"),
    file("headers"),
)
KERNEL = BuiltKernel(
    target=Target("bookworm", "lab"),
    base=BASE,
    series=Series("5.11", ">=5.11,<8", (), "0" * 64),
    release="6.1.0-57-cplayground-lab",
    method="rebuild",
    source=Path("/source"),
    output=Path("/output"),
    modules=None,
    symvers=Path("/symvers"),
    config=Path("/config"),
    compiler="gcc",
    digest="0" * 64,
    seconds=1.0,
)
MODULE = BuiltModule(Path("/cplayground.ko"), KERNEL.release, ("stock", "export"), "magic", 1.0)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the work of each task by its result."""
    deb = tmp_path / "linux-image.deb"
    deb.write_bytes(b"deb")
    package = Package("linux-image", "6.1.192-3+cplayground1", "amd64", deb, "b" * 64)
    settings = Settings(project=PROJECT, build=tmp_path, cache=tmp_path)
    made = Made(
        settings,
        KERNEL.target,
        base=BASE,
        kernel=KERNEL,
        kernel_packages=(package,),
        repo=tmp_path / "repo",
        took={"fetch": 1.0, "kernel": 59.0},
    )
    step = Step("kernel", "an input changed")
    finding = doctor.Finding("Python", False, "It is old.", "Get a new one.")
    for place, name, result in (
        (source, "fetch", BASE),
        (stages, "build_kernel", KERNEL),
        (stages, "build_module", MODULE),
        (stages, "package", made),
        (stages, "explain", (Step("fetch", None), step)),
        (testing, "_run_tier", testing.TierResult("unit", 1, 9, 2, 1.0, tmp_path / "unit.xml")),
        (doctor, "check", (finding,)),
        (kernels, "run", [KernelReport("bookworm", "lab", error=BuildError("no"))]),
    ):
        monkeypatch.setattr(place, name, lambda *_, result=result, **__: result)


DOCUMENTS: dict[str, tuple[list[str], int, str]] = {
    "fetch": ([], 0, ""),
    "build-kernel": ([], 0, ""),
    "build-module": ([], 0, ""),
    "package": (
        [],
        0,
        "packaged 6.1.0-57-cplayground-lab: 1 packages, 3 B, 1 min 00 s",
    ),
    "test": (["--tier", "unit"], 1, ""),
    "report": ([], 3, ""),
    "explain": ([], 0, ""),
    "verify": ([], 0, "verified: 0 checked, none damaged"),
    "doctor": ([], 69, "not ready: Python"),
    "clean": ([], 0, ""),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.usefixtures("fakes")
def test_a_document_has_the_documented_fields(name: str, here: Here) -> None:
    words, expected, summary = DOCUMENTS[name]
    status, found, _ = asked(here, name, *words)
    assert (status, found["status"], found["task"]) == (expected, expected, name)
    assert (found["summary"] or "") == summary
    assert sorted(set(found) - COMMON) == sorted(first_column("json.md", name))


@pytest.mark.usefixtures("fakes")
def test_documents_hold_what_a_pipeline_needs(here: Here, tmp_path: Path) -> None:
    (package,) = asked(here, "package")[1]["packages"]
    assert package == {
        "name": "linux-image",
        "version": "6.1.192-3+cplayground1",
        "architecture": "amd64",
        "path": str(tmp_path / "linux-image.deb"),
        "sha256": "b" * 64,
        "size": 3,
    }
    tested = asked(here, "test", "--tier", "unit")[1]
    assert tested["tiers"][0]["failed"] == 2
    assert tested["error"]["what"] == "2 of 9 unit tests failed"
    assert asked(here, "report")[1]["kernels"][0]["error"]["kind"] == "build"
    assert asked(here, "explain")[1]["stages"][1]["reason"] == "an input changed"


def test_all_suites_have_their_results_in_the_document(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(settings: Settings, target: Target, **_: object) -> tuple[every_suite.Step, ...]:
        def act() -> str:
            if target.suite == "trixie":
                raise BuildError("no series")
            return "fast"

        return (every_suite.Step("built", (), act),)

    monkeypatch.setattr(every_suite, "build_steps", steps)
    status, found, err = asked(here, "build-kernel", "--suite", "all")
    assert status == 3
    assert [row["suite"] for row in found["suites"]] == list(suites.SUITES)
    cells = {row["suite"]: row["cells"]["built"] for row in found["suites"]}
    assert cells["bookworm"]["said"] == "fast"
    assert cells["trixie"]["error"]["what"] == "no series"
    assert err.splitlines()[-1] == "failed: trixie (built)"


@pytest.mark.usefixtures("fakes")
def test_a_dry_run_says_so(here: Here) -> None:
    for name in ("package", "test", "verify", "clean"):
        status, out, _ = here("--dry", name, "--json")
        assert (status, json.loads(out)["dry"]) == (0, True)


def test_every_document_is_on_the_page() -> None:
    assert set(DOCUMENTS) <= set(WITH_JSON)
    assert not [name for name in WITH_JSON if not first_column("json.md", name)]
    assert sorted(first_column("json.md", "Every document")) == sorted(COMMON)
    assert sorted(first_column("json.md", "An error")) == sorted(
        answer.plain(errors.KbuildError("x"))  # type: ignore[call-overload]
    )


def test_a_pipeline_can_read_the_document_of_a_process(tmp_path: Path) -> None:
    done = invoke("explain", "--json", "--suite", "bookworm", home=tmp_path)
    assert json.loads(done.stdout)["task"] == "explain"
