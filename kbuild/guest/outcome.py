"""How a guest's life can end, and the letters of a kernel's taint."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """What became of a guest; each has an exit status of its own."""

    PASSED = ("passed", 0)
    FAILED = ("failed", 20)  # a command ended with a status other than 0
    CRASHED = ("crashed", 21)  # oops, BUG or panic
    REPORTED = ("reported", 22)  # KASAN, lockdep...: a detector spoke
    WARNED = ("warned", 23)  # WARN, or a refcount warning
    HUNG = ("hung", 24)  # no answer, soft lockup, hung task, RCU stall
    KILLED = ("killed", 25)  # QEMU was ended from outside
    NO_OUTPUT = ("no output", 26)  # neither a hello nor a kernel's first line
    NO_POWER_OFF = ("no power-off", 27)  # gone, but not in order
    TAINTED = ("tainted", 28)  # a taint bit that was not expected
    LEAKED = ("leaked", 29)  # something was not given back
    BLIND = ("blind", 30)  # a detector is missing or off: its silence proves nothing
    GARBLED = ("garbled", 31)  # the agent sent what no agent of ours sends
    FLOODED = ("flooded", 32)  # more came on the console than it is to hold

    def __init__(self, label: str, exit_status: int) -> None:
        self.label = label
        self.exit_status = exit_status


# include/linux/panic.h of 7.3: the letters in order of their bits; 5.10 ends at T, 6.1 at N
TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"
# Our module is out of tree (O), and signed by a key that the kernel does not trust (E), or not.
MODULE_TAINT = 1 << 12 | 1 << 13


def taint_letters(mask: int) -> str:
    """Name the bits of /proc/sys/kernel/tainted as the kernel's oopses do."""
    known = "".join(letter for bit, letter in enumerate(TAINT_LETTERS) if mask >> bit & 1)
    unknown = mask >> len(TAINT_LETTERS)
    return known + (f"+{unknown << len(TAINT_LETTERS):#x}" if unknown else "")
