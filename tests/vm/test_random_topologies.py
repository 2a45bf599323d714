"""Random topologies: the module, the kernel's own view and the plan agree in all fields."""

from __future__ import annotations

import contextlib
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from kbuild.core.model import PROCFILE
from kbuild.core.run import describe_status
from kbuild.guest import image
from kbuild.guest.guest import Background, Guest, GuestLost
from kbuild.guest.programs import PLACE
from kbuild.lab import procfile
from tests.topologies import TOPOLOGIES
from tests.topology import topology as t
from tests.topology.building import Builder, Built, NotBuiltError, compare
from tests.topology.planning import Plan
from tests.topology.topology import Container, End, Process, Signal, Topology
from tests.vm.module import backends, loaded_with

PROGRAM = "build_topology"
# The limit for one topology, on a fast machine.  The program's own deadline is shorter.
BUILD_S = 60.0


class GuestGoneError(BaseException):
    """The guest has died; hypothesis catches only Exception, and must not try a dead guest."""


@dataclass
class Workshop:
    """The guest's builder, restarted after its end, and the counts of comparisons so far."""

    guest: Guest
    extended: bool = True
    topologies: int = 0
    processes: int = 0
    descriptors: int = 0
    states: Counter[str] = field(default_factory=Counter)
    program: Background | None = None
    builder: Builder | None = None

    def start(self) -> Builder:
        """Return the builder, running."""
        if self.builder is None:
            # An earlier program may have left its directory behind.
            place = f"/tmp/topologies.{secrets.token_hex(4)}"
            self.program = self.guest.start([f"{PLACE}/{PROGRAM}", place, PROCFILE], cwd="/tmp")
            self.builder = Builder(self.program, place.encode(), timeout_s=BUILD_S)
        return self.builder

    def build(self, topology: Topology) -> tuple[Plan, Built]:
        """Build a topology; raises NotBuiltError with the program's messages."""
        try:
            builder = self.start()
            plan = builder.plan(topology)
            return plan, builder.build(plan)
        except NotBuiltError as error:
            assert self.program is not None
            if not self.program.ended:
                raise
            self.builder = None
            result = self.program.wait(10)
            how = describe_status(result.status)
            raise NotBuiltError(f"{error}: {how}: {result.stderr.decode()}") from None

    def check(self, topology: Topology) -> None:
        """Build a topology, and fail with the differences."""
        try:
            plan, built = self.build(topology)
        except GuestLost as lost:
            raise GuestGoneError(str(lost)) from lost
        result = compare(built, plan, extended=self.extended)
        self.topologies += 1
        self.processes += result.processes
        self.descriptors += result.descriptors
        self.states.update(process.state for process in plan.processes)
        if result.differences:
            # With pytest.fail(), hypothesis would not show the topology.
            raise AssertionError("\n".join(result.differences[:40]))

    def close(self) -> None:
        """End the program, which must be able to unmount its file systems."""
        if self.builder is not None and self.program is not None and self.guest.alive:
            self.program.close_stdin()
            self.program.wait(60, check=True)


@pytest.fixture
def workshop(guest: Guest) -> Iterator[Workshop]:
    """The builder in the guest."""
    shop = Workshop(guest)
    yield shop
    shop.close()


def try_topologies(shop: Workshop, count: int, number: int) -> None:
    """Try ``count`` random topologies from a seed, and fail with the smallest bad one."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        print_blob=True,
        # The guest takes more time than the drawing.
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(TOPOLOGIES)
    def each(topology: Topology) -> None:
        shop.check(topology)

    try:
        each()
    except GuestGoneError as gone:
        pytest.fail(f"the guest died of a topology (seed {number}): {gone}", pytrace=False)


def test_random_topologies(
    guest: Guest, workshop: Workshop, request: pytest.FixtureRequest
) -> None:
    """Try each backend with all fields, and then the default backend with the basic fields."""
    count: int = request.config.getoption("topologies")
    number: int = request.config.getoption("topology_seed") or random.randrange(1 << 32)
    print(f"{count} topologies, --topology-seed {number}")
    built_in = backends(guest)
    assert built_in == (["stock", "export"] if image.is_ours(guest.kernel) else ["stock"])
    rounds = [(backend, "extended") for backend in built_in] + [(built_in[0], "basic")]
    for backend, fields in rounds:
        workshop.extended = fields == "extended"
        with loaded_with(guest, f"backend={backend}", f"fields={fields}"):
            try_topologies(workshop, max(1, count // len(rounds)), number)
        number += 1
    print(
        f"{workshop.topologies} topologies, {workshop.processes} processes,"
        f" {workshop.descriptors} descriptors, {dict(workshop.states)}"
    )
    # Without enough processes and descriptors the comparison would prove nothing.
    assert workshop.topologies >= count // len(rounds) * len(rounds)
    assert workshop.processes >= 2 * workshop.topologies
    assert workshop.descriptors >= 10 * workshop.topologies
    if count >= 100:
        assert set(workshop.states) == set("DSTtZ")


# Each open file and each namespace appears twice, so that no id is unique.
SAMPLE = Topology(
    (b"a\tb\\", b"c"),
    (
        Container(
            Process(
                (
                    t.Open(0, t.O_APPEND | t.O_CLOEXEC),
                    t.Seek(1, 4_000_000_000),
                    t.Pipe(t.O_NONBLOCK),
                    t.Socket(0, True, True, False),
                    t.Memfd(0, False),
                    t.Anonymous("eventpoll", True, False),
                    t.Block(frozenset((1, 15))),
                    t.SetName(b"x\ny"),
                    t.Spawn(Process((t.NewGroup(),)), False, False),
                    t.Spawn(Process((t.SetCloexec(0, True),), End.ZOMBIE), False, False),
                ),
                signals=(Signal(15, False),),
            )
        ),
    ),
)


@pytest.mark.parametrize("fields", ["basic", "extended"])
def test_no_byte_of_a_listing_can_be_another(guest: Guest, workshop: Workshop, fields: str) -> None:
    """The comparison is not vacuous: it refuses or finds a change of any byte."""
    with loaded_with(guest, f"fields={fields}"):
        plan, built = workshop.build(SAMPLE)
    extended = fields == "extended"
    assert compare(built, plan, extended=extended).differences == ()
    assert len(built.text) > 1000
    for at, byte in enumerate(built.text):
        for other in {byte ^ 1, byte ^ 2, ord("0"), ord("\n")} - {byte}:
            text = built.text[:at] + bytes((other,)) + built.text[at + 1 :]
            try:
                result = compare(replace(built, text=text), plan, extended=extended)
            except procfile.ProcfileError:
                continue
            assert result.differences, f"byte {at}, {byte:#x} to {other:#x}: {text!r}"
    for at in range(len(built.text)):
        with contextlib.suppress(procfile.ProcfileError):
            cut = replace(built, text=built.text[:at])
            assert compare(cut, plan, extended=extended).differences, f"cut off after {at}"
