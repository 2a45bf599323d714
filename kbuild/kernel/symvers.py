"""Read Module.symvers: the symbols that a kernel exports, as modpost wrote them.

It has five tab-separated fields since Linux 5.10 (Documentation/kbuild/modules.rst): CRC, name,
owner ("vmlinux" or a module's path), kind of export, and namespace (often empty).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kbuild.core.errors import BuildError

_FIELDS = 5


@dataclass(frozen=True)
class ExportedSymbol:
    """One exported symbol; ``crc`` is None on a kernel built without CONFIG_MODVERSIONS."""

    crc: int | None
    name: str
    owner: str  # "vmlinux", or the path of the module that exports it
    kind: str  # EXPORT_SYMBOL or EXPORT_SYMBOL_GPL
    namespace: str  # "" for the default one


def parse(text: str, *, where: Path | str = "Module.symvers") -> dict[str, ExportedSymbol]:
    """Parse the text of a Module.symvers; ``where`` names it in an error.

    modpost writes a CRC of 0 for each symbol if there are none, so 0 becomes None.
    Raises BuildError for a malformed line, a bad CRC or a symbol listed twice.
    """
    symbols: dict[str, ExportedSymbol] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t")
        # A kernel without namespaces still writes the tab before the empty fifth field.
        if len(fields) != _FIELDS:
            raise BuildError(
                f"{where}, line {number}: not a line of Module.symvers",
                expected=f"{_FIELDS} tab-separated fields",
                found=f"{len(fields)} fields: {line!r}",
            )
        crc, name, owner, kind, namespace = fields
        try:
            value = int(crc, 16)
        except ValueError:
            raise BuildError(
                f"{where}, line {number}: the CRC is not a hexadecimal number",
                expected="0x and eight digits",
                found=repr(crc),
            ) from None
        if name in symbols:
            raise BuildError(
                f"{where}, line {number}: the symbol {name} is listed twice",
                found=f"exported by {symbols[name].owner} and by {owner}",
            )
        symbols[name] = ExportedSymbol(value or None, name, owner, kind, namespace)
    return symbols


def read(path: Path) -> dict[str, ExportedSymbol]:
    """Read a Module.symvers file; raises BuildError if it is missing, empty or malformed."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read the kernel's symbol list {path}", found=str(error)) from None
    symbols = parse(text, where=path)
    if not symbols:
        raise BuildError(
            f"the kernel's symbol list {path} is empty",
            expected="one line for each exported symbol",
            hint="an interrupted kernel build leaves an empty one; build the kernel again",
        )
    return symbols
