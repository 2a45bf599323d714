"""The units of contrib/systemd and the alerts of contrib/prometheus fit the programs they are for.

The alerts themselves are tried by promtool, which is not among our requirements: Debian's package
starts a server.  The head of the rules' file has the commands.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path

import pytest
from invoke.util import yaml  # type: ignore[attr-defined]

import tasks
from kbuild.watch import metrics
from tests.unit import statuses
from tests.unit.command_line import Here, here

__all__ = ["here"]

PROJECT = Path(__file__).resolve().parents[2]
UNITS = PROJECT / "contrib/systemd"
ALERTS = PROJECT / "contrib/prometheus"
NAME = "cplayground-kernel-watch"
# The checkout that the units name.
CHECKOUT = "/opt/cplayground-kernel"
# systemd-analyze's exposure, 0 to 100: 52 with systemd 252.  A directive that is lost raises it.
EXPOSURE = 53
METRIC = re.compile(r"cplayground_kernel_\w+")


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on units of a directory; it needs no running systemd."""
    return subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=units,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_COLORS": "0", "LANG": "C.UTF-8"},
    )


def installed(units: Path, edit: tuple[str, str] = ("", "")) -> Path:
    """Copy the units as an administrator whose checkout is this one does."""
    units.mkdir()
    for path in UNITS.iterdir():
        text = path.read_text().replace(CHECKOUT, str(PROJECT)).replace(*edit)
        (units / path.name).write_text(text)
    return units


def verified(units: Path) -> subprocess.CompletedProcess[str]:
    return analyze(units, "verify", "--man=no", f"./{NAME}.service", f"./{NAME}.timer")


def test_systemd_understands_every_directive(tmp_path: Path) -> None:
    done = verified(installed(tmp_path / "units"))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_directive_that_systemd_does_not_know_is_found(tmp_path: Path) -> None:
    done = verified(installed(tmp_path / "units", ("ProtectClock", "ProtectClok")))
    assert "ProtectClok" in done.stderr


def test_the_service_runs_a_task_with_the_configuration_of_the_how_to(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = (UNITS / f"{NAME}.service").read_text()
    (task,) = re.findall(rf"(?m)^ExecStart={CHECKOUT}/inv (\w+)$", unit)
    assert callable(getattr(tasks, task))
    page = (PROJECT / "docs/howto/keep-current.md").read_text()
    (sample,) = re.findall(r"(?ms)^ *```\n( *watch_targets:.*?)^ *```", page)
    (tmp_path / "watch.yaml").write_text(textwrap.dedent(sample))
    monkeypatch.setenv("INVOKE_RUNTIME_CONFIG", str(tmp_path / "watch.yaml"))
    assert here("--dry", "clean")[0] == 0
    (tmp_path / "watch.yaml").write_text(textwrap.dedent(sample).replace("watch_p", "wotch_p"))
    assert here("--dry", "clean")[0] == 2


@pytest.mark.parametrize("lost", ["", "NoNewPrivileges=yes", "ProtectSystem=strict"])
def test_no_directive_that_confines_it_is_lost(lost: str, tmp_path: Path) -> None:
    # "#" makes a comment of the line.
    units = installed(tmp_path / "units", (lost, f"#{lost}") if lost else ("", ""))
    unit = f"./{NAME}.service"
    done = analyze(units, "security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert (done.returncode == 0) is (not lost), done.stdout[-200:] + done.stderr


def test_alerts_ask_for_metrics_that_exist(tmp_path: Path) -> None:
    exported = set()
    for day in statuses.DAYS.values():
        exported |= set(METRIC.findall(metrics.render(day(tmp_path / "a.log")).decode()))
    document = yaml.safe_load((ALERTS / "cplayground-kernel.rules.yml").read_text())  # type: ignore[no-untyped-call]
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    asked = [METRIC.findall(rule["expr"]) for rule in rules]
    assert len(rules) > 5 and all(asked)
    assert {name for names in asked for name in names} <= exported
    tried = (ALERTS / "cplayground-kernel.test.yml").read_text()
    assert not [rule["alert"] for rule in rules if f"alertname: {rule['alert']}\n" not in tried]
