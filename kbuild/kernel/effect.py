"""Prove a series' effect in the source: each export follows its own function."""

from __future__ import annotations

import re
from pathlib import Path

from kbuild.core.errors import BuildError
from kbuild.core.model import Series
from kbuild.kernel.quilt import EXPORTS_FIELD

EXPORT = re.compile(r"^EXPORT_SYMBOL(?:_GPL)?\((\w+)\);", re.MULTILINE)
# A function's head in the kernel's style: it starts in the first column, and the name is
# what stands before the first parenthesis.
FUNCTION_HEAD = re.compile(r"^(?!EXPORT_SYMBOL)[A-Za-z_][^;{}()]*?\b(\w+)\(", re.MULTILINE)


def text_of(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file():
        return None
    return path.read_bytes().decode(errors="surrogateescape")


def check_effect(pristine: Path, patched: Path, series: Series, names: tuple[str, ...]) -> None:
    """Prove that the source now exports exactly what the series declares, each in its place.

    Raises BuildError naming the export that is missing, undeclared, or does not follow the
    function of its own name.
    """
    added: set[str] = set()
    for name in names:
        text, old = text_of(patched / name) or "", text_of(pristine / name) or ""
        fresh = set(EXPORT.findall(text)) - set(EXPORT.findall(old))
        for symbol in sorted(fresh):
            owner = exported_function(text, symbol)
            if owner != symbol:
                raise BuildError(
                    f"the export of {symbol} in {name} does not follow its own function",
                    expected=f"EXPORT_SYMBOL_GPL({symbol}); right after the end of {symbol}()",
                    found=f"it follows {owner}()" if owner else "it follows no function",
                    hint="the patch's context matched in the wrong place; refresh it",
                )
        added |= fresh
    if added != set(series.exports):
        raise BuildError(
            f"series {series.name} does not export what its patches declare",
            expected=", ".join(series.exports) or "no new export",
            found=", ".join(sorted(added)) or "no new export",
            hint=f"make {EXPORTS_FIELD} and the patch agree",
        )


def exported_function(text: str, symbol: str) -> str | None:
    """Return the name of the function that the export of ``symbol`` directly follows.

    None when what stands before it is not the end of a function.
    """
    match = re.search(rf"^EXPORT_SYMBOL(?:_GPL)?\({symbol}\);", text, re.MULTILINE)
    if match is None:
        return None
    before = text[: match.start()]
    if not before.endswith("\n}\n"):
        return None
    opening = before.rfind("\n{\n")
    if opening < 0:
        return None
    heads = list(FUNCTION_HEAD.finditer(before[: opening + 1]))
    return heads[-1].group(1) if heads else None
