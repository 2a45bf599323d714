"""Module.symvers is read strictly: a wrong guess here would load a wrong module."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.core.errors import BuildError
from kbuild.kernel import symvers

LINES = (
    "0x1b7a3c5d\tput_pid\tvmlinux\tEXPORT_SYMBOL_GPL\t\n"
    "0x00000000\tno_crc\tvmlinux\tEXPORT_SYMBOL\t\n"
    "0x11111111\tspaced\tdrivers/a/b\tEXPORT_SYMBOL_GPL\tUSB_STORAGE\n"
)


def test_reads_each_field(tmp_path: Path) -> None:
    path = tmp_path / "Module.symvers"
    path.write_text(LINES)
    assert symvers.read(path) == {
        "put_pid": symvers.ExportedSymbol(
            0x1B7A3C5D, "put_pid", "vmlinux", "EXPORT_SYMBOL_GPL", ""
        ),
        "no_crc": symvers.ExportedSymbol(None, "no_crc", "vmlinux", "EXPORT_SYMBOL", ""),
        "spaced": symvers.ExportedSymbol(
            0x11111111, "spaced", "drivers/a/b", "EXPORT_SYMBOL_GPL", "USB_STORAGE"
        ),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x1 put_pid vmlinux EXPORT_SYMBOL\n", "line 1: not a line"),
        (LINES + "0x1\tput_pid\tvmlinux\tEXPORT_SYMBOL\n", "line 4: not a line"),
        ("zz\tput_pid\tvmlinux\tEXPORT_SYMBOL\t\n", "CRC is not a hexadecimal"),
        (LINES + LINES, "line 4: the symbol put_pid is listed twice"),
    ],
)
def test_refuses_another_shape(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        symvers.parse(text)


def test_refuses_an_empty_or_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "Module.symvers"
    with pytest.raises(BuildError, match="cannot read"):
        symvers.read(path)
    path.write_text("")
    with pytest.raises(BuildError, match="is empty"):
        symvers.read(path)
