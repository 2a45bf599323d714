"""Triage: recorded consoles, the identity of a bug, and the way to its source lines."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from kbuild.guest import decoding, triage
from kbuild.guest.decoding import Location, Place
from kbuild.guest.outcome import Outcome
from tests.unit import console_corpus

CORPUS = sorted(console_corpus.DIRECTORY.glob("*.log"))
OBJECT = Path(__file__).parent / "data" / "decode" / "inlined.o"

KASAN = """\
==================================================================
BUG: KASAN: use-after-free in {innermost}+0x{offset}/0x90 [sample]
Read of size 1 at addr ffff88800{object}48 by task cat/{pid}

CPU: 1 PID: {pid} Comm: cat Tainted: G           O       6.1.0 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x5b/0x77
 print_report+0x174/0x4d9
 ? helper_that_is_doubted+0x3/0x40
 kasan_report+0xbd/0x100
 {innermost}+0x{offset}/0x90 [sample]
 outer.isra.0+0xc/0x10 [sample]
 vfs_read+0x100/0x200
 </TASK>

Allocated by task 1:
 kasan_save_stack+0x1e/0x40
 kmalloc_trace+0x2a/0xa0
 maker+0x8/0x80 [sample]

Freed by task {pid}:
 kasan_save_stack+0x1e/0x40
 kfree+0x1/0x2
 breaker+0x8/0x80
==================================================================
"""


def kasan(innermost: str = "inner", offset: str = "3a", pid: int = 150) -> str:
    return KASAN.format(innermost=innermost, offset=offset, pid=pid, object=f"{pid:03x}")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_recorded_consoles(path: Path) -> None:
    """The head of each file has the expected results for the rest.

    To refresh them all: python -m tests.unit.console_corpus.
    """
    expected, text = console_corpus.split(path)
    assert console_corpus.expectations(text) == expected


def test_the_corpus_has_every_way_to_end_and_every_kind_of_report() -> None:
    """messages.log has a line of the kernel's sources for each kind without a recording."""
    consoles = [console_corpus.split(path) for path in CORPUS]
    assert {expected[0].removeprefix("verdict: ") for expected, _ in consoles} >= {
        outcome.label
        for outcome in (
            Outcome.PASSED,
            Outcome.CRASHED,
            Outcome.REPORTED,
            Outcome.WARNED,
            Outcome.HUNG,
            Outcome.NO_OUTPUT,
            Outcome.NO_POWER_OFF,
        )
    }
    found = {report.name for _, text in consoles for report in triage.scan(text)}
    assert found == {pattern.name for pattern in triage.PATTERNS}


def test_a_recorded_console_loses_only_what_is_far_from_its_reports() -> None:
    quiet = [f"[ 1.{n:06d}] line {n}" for n in range(50)]
    text = "\n".join([*quiet, *kasan().splitlines(), *quiet])
    trimmed = console_corpus.trim(text)
    assert triage.scan(trimmed)[0].excerpt == triage.scan(text)[0].excerpt
    assert trimmed.splitlines()[:2] == quiet[:2]
    assert trimmed.splitlines()[-1] == quiet[-1]
    assert len(trimmed.splitlines()) < len(text.splitlines()) - 80


def test_a_line_takes_no_more_time_than_its_length() -> None:
    for unit in ("WARNING: at ", "WARNING: possible ", "INFO: task blocked ", "BUG x (", "a1"):
        began = time.process_time()
        triage.render(triage.scan(unit * ((1 << 18) // len(unit))))
        assert time.process_time() - began < 10, unit


@pytest.mark.parametrize("before", [0, 700, 1000, 1024, 1500, 8000])
def test_a_report_is_found_in_a_line_of_any_length(before: int) -> None:
    line = "x" * before + "[    1.000000] BUG: KASAN: use-after-free in inner+0x3a/0x90 [sample]"
    (found,) = triage.scan(f"[    0.5] quiet\n{line}{'y' * before}\n[    2.0] quiet\n")
    assert (found.name, found.line) == ("KASAN", 2)
    assert "use-after-free in inner" in found.title
    assert len(found.title) <= 1100


def test_the_timestamp_does_not_hide_a_report() -> None:
    found = triage.scan("[   12.345678][  T123] Oops: 0002 [#1] SMP\n<4>[  1.0] Oops: 0 [#2]\n")
    assert [r.title for r in found] == ["Oops: 0002 [#1] SMP"]


# --- where a report ends -------------------------------------------------------------------


def test_a_report_has_all_of_its_lines_and_no_other_ones() -> None:
    found = triage.scan("before\n" + kasan() + "after\n")
    assert len(found) == 1
    assert found[0].line == 3
    assert found[0].excerpt.splitlines()[-1].startswith("=====")
    assert "breaker" in found[0].excerpt


def test_a_report_is_whole_when_its_last_line_has_come() -> None:
    *lines, last = kasan().splitlines()
    assert not triage.scan("\n".join(lines))[0].whole
    assert triage.scan("\n".join([*lines, last]))[0].whole


def test_two_reports_one_after_the_other_are_two() -> None:
    assert len(triage.scan(kasan() + kasan("middle"))) == 2
    # The same holds if the first one was cut off.
    cut = "\n".join(kasan().splitlines()[:-1]) + "\n"
    assert len(triage.scan(cut + kasan("middle"))) == 2


def test_what_an_oops_brings_about_is_one_report() -> None:
    text = (
        "BUG: kernel NULL pointer dereference, address: 0\nOops: 0002 [#1] SMP\n"
        "RIP: 0010:inner+0x8/0x10 [sample]\n---[ end trace 1 ]---\nRIP: 0010:x\n"
        "Kernel panic - not syncing: Fatal exception\nKernel Offset: disabled\n"
    )
    assert [r.name for r in triage.scan(text)] == ["NULL dereference"]
    # A panic with another cause is a report of its own.
    other = text.replace("Fatal exception", "Attempted to kill init! exitcode=0x00000009")
    assert [r.name for r in triage.scan(other)] == ["NULL dereference", "panic"]
    assert [r.name for r in triage.scan("Kernel panic - not syncing: VFS: no root\n")] == ["panic"]


@pytest.mark.parametrize(
    "warn",
    [
        "WARNING: CPU: 1 PID: 9 at lib/refcount.c:25 refcount_warn+0x1/0x2\n",
        "WARNING: lib/refcount.c:25 at refcount_warn+0x1/0x2, CPU#1: cat/9\n",
    ],
    ids=["to Linux 6", "Linux 7"],
)
def test_a_warning_with_words_of_its_own_is_one_report(warn: str) -> None:
    text = f"refcount_t: underflow; use-after-free.\n{warn}---[ end trace 1 ]---\n"
    assert [r.name for r in triage.scan(text)] == ["refcount"]
    assert [r.name for r in triage.scan(text + warn)] == ["refcount", "WARN"]


# --- fingerprints ----------------------------------------------------------------------------


def test_one_bug_is_one_bug_wherever_and_whenever_it_shows() -> None:
    seen = [
        triage.fingerprint(triage.scan(text)[0])
        for text in (
            kasan(),
            kasan(offset="5f", pid=99),
            kasan("inner.constprop.0"),
            "\n".join(f"[ {n}.0] {line}" for n, line in enumerate(kasan().splitlines())),
        )
    ]
    assert set(seen) == {"KASAN use-after-free: inner < outer"}


def test_two_bugs_are_two() -> None:
    other = kasan().replace("use-after-free in", "slab-out-of-bounds in")
    seen = triage.scan(kasan() + kasan("middle") + other + kasan(pid=7))
    assert [(bug.fingerprint, bug.count) for bug in triage.group(seen)] == [
        ("KASAN use-after-free: inner < outer", 2),
        ("KASAN use-after-free: middle < outer", 1),
        ("KASAN slab-out-of-bounds: inner < outer", 1),
    ]


def test_the_kernels_function_at_fault_is_named_before_the_modules() -> None:
    text = kasan().replace(" inner+0x3a/0x90 [sample]", " vanish+0x1/0x2")
    assert triage.fingerprint(triage.scan(text)[0]) == "KASAN use-after-free: vanish < outer"
    # A generic function that only serves its caller is not.
    text = kasan().replace(" inner+0x3a/0x90 [sample]", " __lock_acquire+0x1/0x2")
    assert triage.fingerprint(triage.scan(text)[0]) == "KASAN use-after-free: outer"


def test_a_report_without_a_stack_has_its_words_without_numbers() -> None:
    one, two = (
        triage.scan("BUG: Bad rss-counter state mm:00000000c0ffee val:2\nq\nq\nq\n")[0],
        (triage.scan("BUG: Bad rss-counter state mm:00000000beef22 val:7\nq\nq\nq\n")[0]),
    )
    assert triage.fingerprint(one) == triage.fingerprint(two)


def test_a_race_is_named_by_both_sides_whichever_came_first() -> None:
    sides = [
        f"{kind} to 0xffff of 8 bytes by task {pid} on cpu {pid}:\n"
        f" {name}+0x1/0x2 [sample]\n kthread+0x1/0x2\n"
        for kind, pid, name in (("write", 1, "writer"), ("read", 2, "reader"))
    ]
    head = "BUG: KCSAN: data-race in reader [sample] / writer [sample]\n\n"
    seen = {triage.fingerprint(triage.scan(head + "\n".join(s))[0]) for s in (sides, sides[::-1])}
    assert seen == {"KCSAN data-race: reader / writer"}


def test_a_race_of_the_kernels_own_is_no_report_of_ours() -> None:
    rule = "=" * 66
    body = (
        "write to 0xffff of 8 bytes by task 1 on cpu 1:\n a+0x1/0x2\n outer+0x1/0x2 [sample]\n\n"
        "read to 0xffff of 8 bytes by task 2 on cpu 0:\n b+0x1/0x2\n\nvalue changed: 0x1 -> 0x2\n\n"
        f"Reported by Kernel Concurrency Sanitizer on:\nCPU: 0 PID: 2 Comm: b\n{rule}\n"
    )
    for title in ("data-race in a / b", "assert: race in a / b", "data-race in a+0x1/0x2"):
        assert triage.scan(f"{rule}\nBUG: KCSAN: {title}\n\n{body}") == ()
    for title in ("data-race in a / b [x]", "data-race in a [x] / b", "assert: race in a [x]"):
        (found,) = triage.scan(f"{rule}\nBUG: KCSAN: {title}\n\n{body}")
        assert found.name == "KCSAN"


# --- source lines ------------------------------------------------------------------------------


def test_a_place_is_decoded_to_its_lines_inlined_ones_first() -> None:
    places = [Place("outer", 0xB), Place("begin", 0x8), Place("absent", 0), Place("outer", 0x999)]
    assert decoding.locate(OBJECT, places) == {
        places[0]: (
            Location("inner", "inlined.c", 6),
            Location("middle", "inlined.c", 12),
            Location("outer", "inlined.c", 17),
        ),
        # This one has the same address in another section.
        places[1]: (Location("begin", "inlined.c", 23),),
    }


@pytest.mark.parametrize("content", [b"", b"no ELF file at all", None])
def test_a_module_that_says_nothing_decodes_to_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.ko"
    if content is not None:
        path.write_bytes(content)
    assert decoding.locate(path, [Place("outer", 1)]) == {}


def test_sources_are_named_as_a_reader_knows_them() -> None:
    assert decoding.short("/mnt/headers/./include/linux/fs.h") == "include/linux/fs.h"
    assert decoding.short("./arch/x86/include/asm/bitops.h") == "arch/x86/include/asm/bitops.h"
    assert decoding.short("/var/lib/dkms/cplayground/0.1/build/cplayground.c") == "cplayground.c"


def test_return_addresses_are_those_of_the_call_and_rip_is_the_place_itself() -> None:
    # outer+0xc is after the call at 7, and begin+0x9 is the instruction after its call.
    text = kasan("outer", "c") + "Oops: 0000 [#1]\nRIP: 0010:begin+0x9/0x12 [sample]\n"
    called, oops = (triage.decode(r, {"sample": OBJECT}) for r in triage.scan(text))
    assert [place.line for place in next(iter(called.locations.values()))] == [6, 12, 17]
    assert [place.line for place in next(iter(oops.locations.values()))] == [24]


def test_the_bug_is_shown_with_its_lines_its_count_and_the_way_back_to_it() -> None:
    text = kasan("outer", "c") + kasan("outer", "c", pid=7)
    shown = triage.render(
        triage.scan(text),
        modules={"sample": OBJECT},
        again="./inv try",
        console=Path("/tmp/console.log"),
        excerpt_lines=8,
    )
    assert (
        shown.splitlines()
        == """\
2 reports, 1 bug

KASAN use-after-free: outer
  BUG: KASAN: use-after-free in outer+0xc/0x90 [sample]
  seen 2 times, first on line 2 of the console
  at:
    inner  inlined.c:6 (inlined)
    middle  inlined.c:12 (inlined)
    outer  inlined.c:17
    outer [sample]
    vfs_read
  allocated by maker
  freed by breaker

the kernel's first report:
  BUG: KASAN: use-after-free in outer+0xc/0x90 [sample]
  Read of size 1 at addr ffff8880009648 by task cat/150
  CPU: 1 PID: 150 Comm: cat Tainted: G           O       6.1.0 #1
  Call Trace:
   <TASK>
   dump_stack_lvl+0x5b/0x77
   print_report+0x174/0x4d9
   kasan_report+0xbd/0x100
  ... and 13 more lines

again:    ./inv try
console:  /tmp/console.log""".splitlines()
    )


def test_nothing_is_shown_of_no_reports() -> None:
    assert triage.render(()) == ""


def test_a_report_is_shown_undecoded_where_its_module_is_not_known() -> None:
    report = triage.scan(kasan())[0]
    assert triage.decode(report, {"other": OBJECT}).locations == {}
    assert "inner [sample]" in triage.render([report])
    assert dataclasses.replace(report, locations={}) == report
