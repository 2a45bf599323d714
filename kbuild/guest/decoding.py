"""Find the source lines, inlined ones too, of a function and an offset in a module."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kbuild.core import run
from kbuild.core.errors import InfrastructureError

logger = logging.getLogger(__name__)

_TIMEOUT_S = 60.0
_HEADER = re.compile(r"^.*?((?:arch/\w+/)?include/.*)$")


@dataclass(frozen=True)
class Place:
    """An instruction as the kernel prints it: function+offset."""

    function: str
    offset: int


@dataclass(frozen=True)
class Location:
    """One line of source."""

    function: str
    file: str  # below the kernel's source for a header, else the file's own name
    line: int


def locate(module: Path, places: Iterable[Place]) -> dict[Place, tuple[Location, ...]]:
    """Return the lines of each place, the innermost inlined function first.

    Places that are not in the module's DWARF are left out, so a module without DWARF gives an
    empty result.  Raises InfrastructureError when addr2line fails.
    """
    addresses = _addresses(module, places)
    found: dict[Place, tuple[Location, ...]] = {}
    for section in sorted({section for section, _ in addresses.values()}):
        here = {place: at for place, (name, at) in addresses.items() if name == section}
        said = run.run(
            [
                *("addr2line", "--addresses", "--functions", "--inlines"),
                *("--section", section, "--exe", module),
                *(f"{address:#x}" for address in here.values()),
            ],
            timeout_s=_TIMEOUT_S,
            error=InfrastructureError,
        ).stdout
        for (place, _), answer in zip(here.items(), parse(said), strict=True):
            if answer:
                found[place] = answer
    return found


def parse(said: str) -> list[tuple[Location, ...]]:
    """Parse the output of addr2line --addresses --functions --inlines, one item per address."""
    answers: list[list[Location]] = []
    lines = iter(said.splitlines())
    for line in lines:
        if line.startswith("0x"):
            answers.append([])
            continue
        file, _, number = next(lines, "").partition(" ")[0].rpartition(":")
        if number.isdigit() and int(number) and file != "??":
            answers[-1].append(Location(line, short(file), int(number)))
    return [tuple(answer) for answer in answers]


def short(file: str) -> str:
    """Return a source's short name, which does not depend on the build directory."""
    header = _HEADER.match(file)
    return header.group(1) if header else Path(file).name


def _addresses(module: Path, places: Iterable[Place]) -> dict[Place, tuple[str, int]]:
    """Return each place's section and address; in a .ko each section begins at 0."""
    try:
        with module.open("rb") as stream:
            elf = ELFFile(stream)
            table = elf.get_section_by_name(".symtab")
            if not elf.has_dwarf_info() or not isinstance(table, SymbolTableSection):
                logger.debug("%s has no debugging information", module)
                return {}
            functions = {
                symbol.name: (elf.get_section(symbol["st_shndx"]).name, symbol["st_value"])
                for symbol in table.iter_symbols()
                if symbol["st_info"]["type"] == "STT_FUNC" and isinstance(symbol["st_shndx"], int)
            }
    except (OSError, ELFError) as error:
        logger.warning("cannot decode with %s: %s", module, error)
        return {}
    return {
        place: (functions[place.function][0], functions[place.function][1] + place.offset)
        for place in places
        if place.function in functions
    }
