"""Errors of the tool; each has the exit status of the command that ends with it."""

from __future__ import annotations


class Error(Exception):
    """An error with one line for the user, and what to do about it.

    One without a class of its own is of input or output: EX_IOERR of sysexits.h.  Status 1 is
    for errors that ``check`` found, which no failure may look like.
    """

    status = 74

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(Error):
    """Arguments that make no sense, or that name nothing of the snapshot."""

    status = 2


class NoModuleError(Error):
    """There is no /proc/cplayground: the module is not loaded, or not installed."""

    status = 3


class NotPermittedError(Error):
    """The user, or the PID namespace of the process, may not read what is needed."""

    status = 4


class RefusedTextError(Error):
    """The text is not one that the module writes.

    ``line`` and ``column`` count from 1, columns in bytes.
    """

    status = 5

    def __init__(self, message: str, *, line: int, column: int, origin: str = "") -> None:
        place = f"{origin}: " if origin else ""
        super().__init__(f"{place}line {line}, column {column}: {message}")
        self.line = line
        self.column = column
