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
    return _visible(name.decode("utf-8", "surrogateescape"), escaped="\\")


def harmless(sentence: str) -> str:
    """Return a text with names that are shown already, without a character for the terminal.

    Its backslashes stay.  Names of containers are such texts.
    """
    return _visible(sentence)


def encodable(line: str, encoding: str) -> str:
    """Return a line with octal digits for the characters that an encoding does not have."""
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return "".join(one if one.encode(encoding, "ignore") else _octal(one) for one in line)
    return line


def _visible(text: str, *, escaped: str = "") -> str:
    return "".join(
        _octal(one) if one in escaped or unicodedata.category(one) in _HIDDEN else one
        for one in text
    )


def _octal(character: str) -> str:
    try:
        whole = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, as JSON can have it
        whole = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\{byte:03o}" for byte in whole)
