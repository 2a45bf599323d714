"""Check a series' effect in the source: each export must follow its own function."""

from __future__ import annotations

from pathlib import Path

from kbuild.core.errors import BuildError
from kbuild.core.model import Series
from kbuild.kernel.hunks import EXPORT, exported_function
from kbuild.kernel.quilt import EXPORTS_FIELD


def text_of(path: Path) -> str | None:
    """Return the text of a regular file, its bytes kept as surrogates; None if it is none."""
    if path.is_symlink() or not path.is_file():
        return None
    return path.read_bytes().decode(errors="surrogateescape")


def check_effect(pristine: Path, patched: Path, series: Series, names: tuple[str, ...]) -> None:
    """Check that the patched source exports exactly the declared symbols, each in its place.

    Raises BuildError that names the missing or undeclared export, or the export that does not
    follow its own function.
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
                    hint="the patch's context matched in the wrong place: refresh the patch",
                )
        added |= fresh
    if added != set(series.exports):
        raise BuildError(
            f"series {series.name} does not export what its patches declare",
            expected=", ".join(series.exports) or "no new export",
            found=", ".join(sorted(added)) or "no new export",
            hint=f"correct {EXPORTS_FIELD} or the patch",
        )
