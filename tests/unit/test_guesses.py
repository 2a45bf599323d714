"""The functions with which tests in guests guess an id compute what their names say."""

from __future__ import annotations

import hashlib
import struct

from tests.vm.guesses import guesses, siphash


def test_siphash_is_the_kernels() -> None:
    # lib/test_siphash.c: the key and the message are the bytes 0 to 15.
    low, high = 0x0706050403020100, 0x0F0E0D0C0B0A0908
    assert siphash(low, high, key=(low, high)) == 0x3F2ACC7F57C29BDB


def test_the_obvious_functions_are_among_the_guesses() -> None:
    address, inode = 0xFFFF888003D40000, 0xFFFF888003E12340
    tried = guesses(address, inode)
    for order in ("<Q", ">Q"):
        # The original's, and its other byte order.
        assert hashlib.sha256(struct.pack(order, address)).hexdigest() in tried
    assert f"{siphash(address, inode, key=(0, 0)):016x}" * 4 in tried
    assert f"{address:x}".zfill(64) in tried
    assert all(len(one) == 64 for one in tried)
