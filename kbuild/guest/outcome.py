"""The outcomes and the ends of a guest, and the letters of a kernel's taint."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """The outcome of a guest; each has an exit status of its own."""

    PASSED = ("passed", 0)
    FAILED = ("failed", 20)  # a command ended with a status other than 0
    CRASHED = ("crashed", 21)  # oops, BUG or panic
    REPORTED = ("reported", 22)  # a report of KASAN, lockdep or another detector
    WARNED = ("warned", 23)  # WARN, or a refcount warning
    HUNG = ("hung", 24)  # no answer, soft lockup, hung task, RCU stall
    KILLED = ("killed", 25)  # QEMU was ended from outside
    NO_OUTPUT = ("no output", 26)  # no hello, or no first line of a kernel
    NO_POWER_OFF = ("no power-off", 27)  # ended without an orderly power-off
    TAINTED = ("tainted", 28)  # an unexpected taint bit
    LEAKED = ("leaked", 29)  # memory was not freed
    BLIND = ("blind", 30)  # a detector is missing or off, so its silence proves nothing
    GARBLED = ("garbled", 31)  # a frame that our agent never sends
    FLOODED = ("flooded", 32)  # the console is over its limit

    def __init__(self, label: str, exit_status: int) -> None:
        self.label = label
        self.exit_status = exit_status


class End(Enum):
    """The event that ended a guest; its verdict says whether that was right."""

    OFF = "powered off"
    RESET = "reset"  # by itself: a reboot, or a panic that reboots
    WATCHDOG = "reset by the watchdog"
    CUT = "power cut"  # QEMU was ended by us
    LOST = "QEMU ended"  # for no reason that QEMU told


# The letters in the order of their bits: include/linux/panic.h of 7.3.  5.10 ends at T, 6.1 at N.
TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"
# Our module is out of tree (O).  Unsigned, or signed by an untrusted key, it also sets E.
MODULE_TAINT = 1 << 12 | 1 << 13


def taint_letters(mask: int) -> str:
    """Return the letters that the kernel's oopses print for bits of /proc/sys/kernel/tainted."""
    known = "".join(letter for bit, letter in enumerate(TAINT_LETTERS) if mask >> bit & 1)
    unknown = mask >> len(TAINT_LETTERS)
    return known + (f"+{unknown << len(TAINT_LETTERS):#x}" if unknown else "")
