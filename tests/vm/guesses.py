"""Obvious ways to compute an id without a key from the object that it stands for."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import struct

_MASK = (1 << 64) - 1
_HASHES = (
    hashlib.sha256,
    hashlib.sha3_256,
    hashlib.blake2b,
    hashlib.blake2s,
    hashlib.sha1,
    hashlib.md5,
)
_NO_KEY = bytes(32)


def guesses(*numbers: int) -> set[str]:
    """Return the ids of numbers under obvious functions, each of 64 hexadecimal digits."""
    words = [struct.pack(order, number) for order in ("<Q", ">Q") for number in numbers]
    for first in numbers:
        for second in numbers:
            words += [struct.pack(order, first, second) for order in ("<QQ", ">QQ")]
    words += [form % number for form in (b"%x", b"0x%x", b"%016x", b"%d") for number in numbers]
    found = {function(word).hexdigest()[:64] for word in words for function in _HASHES}
    found |= {hmac.new(_NO_KEY, word, "sha256").hexdigest() for word in words}
    found |= {
        hashlib.sha256(_NO_KEY[:size] + word).hexdigest() for word in words for size in (16, 32)
    }
    digits = {word.hex() for word in words}
    for count in (2, 3):
        for words_of_it in itertools.product((*numbers, 0, 1, 2, 3), repeat=count):
            digits.add(f"{siphash(*words_of_it, key=(0, 0)):016x}")
    for text in digits:
        found |= {text.zfill(64), text.ljust(64, "0"), (text * 4)[:64]}
    return {one for one in found if len(one) == 64}


def siphash(*words: int, key: tuple[int, int]) -> int:
    """Return SipHash-2-4 of words of 64 bits, as the kernel's lib/siphash.c computes it."""
    v0, v1 = key[0] ^ 0x736F6D6570736575, key[1] ^ 0x646F72616E646F6D
    v2, v3 = key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573

    def rotate(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & _MASK

    def rounds(count: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0, v2 = (v0 + v1) & _MASK, (v2 + v3) & _MASK
            v1, v3 = rotate(v1, 13) ^ v0, rotate(v3, 16) ^ v2
            v0 = rotate(v0, 32)
            v2, v0 = (v2 + v1) & _MASK, (v0 + v3) & _MASK
            v1, v3 = rotate(v1, 17) ^ v2, rotate(v3, 21) ^ v0
            v2 = rotate(v2, 32)

    # The highest byte of the last word is the length in bytes.
    for word in (*words, 8 * len(words) << 56):
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xFF
    rounds(4)
    return v0 ^ v1 ^ v2 ^ v3
