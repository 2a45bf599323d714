"""Names of processes and files: undo the module's escapes, and show any byte on a terminal."""

from __future__ import annotations

import re
import unicodedata

# Format, control, surrogate, private and unassigned characters, and those that end a line.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_PLAIN = re.compile(rb"[ -\[\]-~]*")


def unescaped(written: bytes) -> bytes:
    """Return the name that the module wrote: each backslash with three octal digits is a byte."""
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), written)


def shown(name: bytes) -> str:
    """Return a name as text for a terminal, from which :func:`unescaped` gives the name back.

    Control bytes, the backslash, bytes that are not UTF-8, and characters that hide or turn a
    text are backslashes with three octal digits, as the module writes control bytes.
    """
    if _PLAIN.fullmatch(name):
        return name.decode("ascii")
    parts = []
    for character in name.decode("utf-8", "surrogateescape"):
        if character == "\\" or unicodedata.category(character) in _HIDDEN:
            whole = character.encode("utf-8", "surrogateescape")
            parts.append("".join(f"\\{byte:03o}" for byte in whole))
        else:
            parts.append(character)
    return "".join(parts)
