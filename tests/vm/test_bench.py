"""The benchmark's programs: they make the loads that the benchmark reports about."""

from __future__ import annotations

import pytest

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.measure import procfile as bench_procfile
from kbuild.measure import stats
from kbuild.measure.procfile import Load, Method
from tests.vm.module import compare, listing


@pytest.mark.parametrize(
    "load",
    [Load("dense", 3, 20), Load("sparse", 2, 20, stride=256), Load("long", 2, 8, path=3000)],
    ids=lambda load: load.name,
)
def test_a_load_is_what_it_says(loaded: Guest, load: Load) -> None:
    with bench_procfile.held(loaded, **bench_procfile.load_options(load)) as inits:
        shown = listing(loaded)
        walked = {
            kind: loaded.run(bench_procfile.walker(kind)(2, ()), timeout_s=60, check=True).text
            for kind in ("plain", "kcmp")
        }
        read = loaded.run(bench_procfile.reader(PROCFILE)(2, ()), timeout_s=60, check=True)
    assert len(shown) == load.processes
    assert shown[0].pid in inits
    for process in shown:
        files = process.files
        assert [one.fd for one in files] == [i * load.stride for i in range(load.files)]
        # Every fourth is a dup of the one before; the others have open files of their own.
        assert len({one.id for one in files}) == load.files - load.files // 4
        assert all(files[i].id == files[i - 1].id for i in range(3, load.files, 4))
        if load.path > 100:
            assert {len(one.path) for one in files} == {load.path}
    same = Method("same", lambda _passes, _pids: [], fewer=0)
    for text in (*walked.values(), read.text):
        passes = stats.parse_passes(text)
        assert len(passes) == 2
        bench_procfile.check_lines(same, passes, load)
    assert listing(loaded) == ()


def test_processes_that_lie_far_apart(loaded: Guest) -> None:
    """The table of pids has holes of every size, some of them without a node."""
    apart, host, containers = 3001, 30, 20
    before = loaded.read("/proc/sys/kernel/pid_max").decode().strip()
    loaded.run(["sysctl", "-qw", "kernel.pid_max=4194304"], timeout_s=5, check=True)
    try:
        with bench_procfile.held(
            loaded, containers=containers, processes=2, host=host, apart=apart
        ) as inits:
            shown = compare(loaded)
    finally:
        loaded.run(["sysctl", "-qw", f"kernel.pid_max={before}"], timeout_s=5, check=True)
    assert [inits[k + 1] - inits[k] for k in range(containers - 1)] == [apart] * (containers - 1)
    assert inits[0] > host * apart
    assert len(shown) == 2 * containers
    assert {one.pid for one in shown} >= {*inits}
    assert [one.pid for one in shown] == sorted(one.pid for one in shown)


def test_the_program_that_is_read_works_as_long_as_it_is_told(loaded: Guest) -> None:
    worker = loaded.start([f"{PLACE}/bench_work", "0", "8"])
    assert worker.read_line(10).startswith(b"container ")
    (process,) = listing(loaded)
    assert len(process.files) >= 8
    worker.write(b"50\n")
    line = worker.read_line(10).decode()
    assert bench_procfile.parse_work(line) > 0
    assert int(line.split()[2]) >= 50_000_000
    worker.close_stdin()
    worker.wait(10, check=True)
