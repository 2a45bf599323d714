"""Text of a picture: how wide it is, how to shorten and wrap it, and what may be in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# The first font of a list that a machine has is used.  No font of these is wider than the tables.
SANS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', 'Courier New', monospace"

# Advance widths of U+0020 to U+007E, in thousandths of the size.  Each is the larger one of those
# of DejaVu Sans and of Liberation Sans.  The latter has the widths of Arial and Helvetica.
_REGULAR = (
    *(318, 401, 460, 838, 637, 951, 780, 275, 391, 391, 500, 838, 318, 361, 318, 337),
    *(637, 637, 637, 637, 637, 637, 637, 637, 637, 637, 337, 337, 838, 838, 838, 557),
    *(1016, 685, 687, 723, 771, 667, 611, 778, 752, 295, 500, 667, 558, 863, 749, 788),
    *(667, 788, 723, 667, 611, 732, 685, 989, 686, 667, 686, 391, 337, 391, 838, 557),
    *(500, 613, 635, 550, 635, 616, 353, 635, 634, 278, 278, 580, 278, 975, 634, 612),
    *(635, 635, 412, 521, 393, 634, 592, 818, 592, 592, 525, 637, 337, 637, 838),
)
_BOLD = (
    *(349, 457, 521, 838, 696, 1002, 873, 307, 458, 458, 523, 838, 380, 416, 380, 366),
    *(696, 696, 696, 696, 696, 696, 696, 696, 696, 696, 400, 400, 838, 838, 838, 611),
    *(1000, 774, 763, 734, 831, 684, 684, 821, 837, 373, 557, 775, 638, 996, 837, 851),
    *(733, 851, 771, 721, 683, 813, 774, 1104, 771, 725, 726, 458, 366, 458, 838, 557),
    *(500, 675, 716, 593, 716, 679, 436, 716, 712, 343, 343, 666, 343, 1042, 712, 688),
    *(716, 716, 494, 596, 479, 712, 652, 924, 646, 652, 583, 712, 366, 712, 838),
)
# Courier New and the others have one width each, and DejaVu Sans Mono the largest.
_MONO = (602,) * 95
# Punctuation of our own sentences.
_OURS = {"…": 1000, "→": 1000, "·": 380, "–": 560, "×": 838}

_UNIT = re.compile(r"\\[0-7]{3}|.", re.DOTALL)
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS = frozenset({"Mn", "Me", "Mc"})
_MOST_MARKS = 3  # on one letter; more would rise over the lines above
# Guesses for a character that is in no table: of East Asia, or another.  Such a text is
# squeezed into the width that was guessed.
_WIDE, _OTHER = 1050, 750
_PLAIN = re.compile(r"[ -~]*")


class Font(NamedTuple):
    """A font in one size, in pixels."""

    family: str  # "sans" or "mono"
    size: float
    bold: bool = False


def clean(text: str) -> str:
    """Return a text without characters that XML forbids, or that hide or turn what follows.

    They become backslashes with three octal digits for each byte; a backslash stays as it is.
    """
    if _PLAIN.fullmatch(text):
        return text
    parts: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        if category in _HIDDEN or marks > _MOST_MARKS:
            escapes_byte = "\udc80" <= character <= "\udcff"
            raw = character.encode("utf-8", "surrogateescape" if escapes_byte else "surrogatepass")
            parts.extend(f"\\{byte:03o}" for byte in raw)
        else:
            parts.append(character)
    return "".join(parts)


def width(text: str, font: Font) -> float:
    """Return how many pixels a text takes at most in any font of its list."""
    if font.family == "mono":
        table, others = _MONO, dict.fromkeys(_OURS, _MONO[0])
    else:
        table, others = (_BOLD if font.bold else _REGULAR), _OURS
    advances = (
        table[ord(character) - 32] if " " <= character <= "~" else others.get(character)
        for character in text
    )
    guessed = (_guessed(c, font) if a is None else a for c, a in zip(text, advances))
    return sum(guessed) * font.size / 1000


def _guessed(character: str, font: Font) -> int:
    if unicodedata.category(character) in _MARKS:
        return 0
    if unicodedata.east_asian_width(character) in ("W", "F"):
        return _WIDE
    return _MONO[0] if font.family == "mono" else _OTHER


def is_known(text: str) -> bool:
    """Return True if the tables have each character; the width of others is a guess."""
    return text.isascii() or all(" " <= one <= "~" or one in _OURS for one in text)


def shortened(text: str, font: Font, most: float) -> str:
    """Return a text that takes at most so many pixels: its middle becomes one character, …

    No escape is cut.  The end is the longer part, because it is a file's name.
    """
    if width(text, font) <= most:
        return text
    units = _UNIT.findall(text)
    widths = [width(unit, font) for unit in units]
    left = most - width("…", font)
    head, start, tail, end = 0.0, 0, 0.0, len(units)
    while start < end:
        from_end = tail <= head * 1.5
        step = widths[end - 1] if from_end else widths[start]
        if head + tail + step > left:
            break
        if from_end:
            tail, end = tail + step, end - 1
        else:
            head, start = head + step, start + 1
    return "".join((*units[:start], "…", *units[end:]))


def beginning(listed: str, font: Font, most: float) -> str:
    """Return as many items of a list as there is room for; the first ones matter most."""
    parts = listed.split(", ")
    while len(parts) > 1 and width(", ".join(parts), font) > most:
        parts = [*parts[: -2 if parts[-1] == "…" else -1], "…"]
    return shortened(", ".join(parts), font, most)


def wrapped(text: str, font: Font, most: float, *, listed: bool = False) -> tuple[str, ...]:
    """Return the lines of a text, each of at most so many pixels; a longer word is cut.

    Lines of a list are parted only between its items.
    """
    lines: list[str] = []
    line = ""
    words = text.replace(", ", ",\n").split("\n") if listed else text.split()
    for word in _words(words, font, most):
        longer = f"{line} {word}" if line else word
        if width(longer, font) <= most:
            line = longer
        else:
            lines.append(line)
            line = word
    return (*lines, line) if line or not lines else tuple(lines)


def _words(words: Iterable[str], font: Font, most: float) -> Iterator[str]:
    for word in words:
        if width(word, font) <= most:
            yield word
            continue
        part, used = "", 0.0
        for unit in _UNIT.findall(word):
            step = width(unit, font)
            if part and used + step > most:
                yield part
                part, used = "", 0.0
            part, used = part + unit, used + step
        yield part
