"""Unit tests run in as many processes as the user allows; tiers with guests run in one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kbuild import testing
from tests.unit import fake_kernel


def test_only_unit_tests_run_in_several_processes(tmp_path: Path) -> None:
    settings = replace(fake_kernel.settings(tmp_path), jobs=3)
    command = testing.pytest_command(settings, "unit", ["-k", "x"])
    assert command[command.index("-n") + 1] == "3"
    assert command[-2:] == ["-k", "x"]
    for tier, jobs in (("vm", 3), ("lab", 3), ("unit", 1)):
        assert "-n" not in testing.pytest_command(replace(settings, jobs=jobs), tier, [])
