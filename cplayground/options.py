"""The words of the command line: commands, options, and the parser that is made of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from cplayground.errors import UsageError
from cplayground.kinds import KINDS

_VERSION: Final = Path(__file__).with_name("VERSION")  # a version and its day


class Option(NamedTuple):
    """An option; without ``metavar`` it is a switch."""

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    many: bool = False  # may be given several times
    number: bool = False
    choices: tuple[str, ...] = ()
    default: object = None

    @property
    def key(self) -> str:
        """The attribute of the parsed arguments."""
        return self.names[-1].lstrip("-").replace("-", "_")


class Argument(NamedTuple):
    """A word after the command."""

    name: str
    help: str
    needed: bool = True


class Command(NamedTuple):
    """A command with the options of its own."""

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    arguments: tuple[Argument, ...] = ()
    filters: bool = True
    source: bool = True


FILTERS: Final = (
    Option(("-c", "--container"), "only this container", "NAME|ID", many=True),
    Option(("-p", "--pid"), "only this process, by its pid on the host", "PID", True, True),
    Option(("--ns-pid",), "only processes with this pid in their container", "N", True, True),
    Option(("--command",), "only processes with this name; a glob", "NAME", many=True),
    Option(("--path",), "only open files with this path; a glob", "GLOB", many=True),
    Option(("--kind",), f"only open files of these kinds: {', '.join(KINDS)}", "KIND,…", True),
)
SOURCES: Final = (
    Option(("--from",), "a text that was kept in a file; - is standard input", "FILE"),
    Option(("--walk",), "look into /proc instead of asking the module: slow, but without it"),
)
COMMON: Final = (
    Option(
        ("--color",),
        "auto: colours on a terminal, unless NO_COLOR is set",
        "WHEN",
        choices=("auto", "never"),
        default="auto",
    ),
)
_JSON: Final = Option(("--json",), "one JSON object a line")

COMMANDS: Final = (
    Command(
        "ls",
        "show descriptors and open files; the default",
        (Option(("-l", "--long"), "also positions, flags, parents, groups and states"),),
    ),
    Command("ps", "count containers' processes, those that are alike together"),
    Command(
        "pipe",
        "show both ends of a pipe, and follow the pipeline",
        arguments=(Argument("PID|pipe:[N]", "a process by its pid on the host, or a pipe"),),
        filters=False,
    ),
    Command(
        "shared",
        "show open files with several descriptors",
        (Option(("--across",), "only those that several containers hold"),),
    ),
    Command(
        "check",
        "look for missing close() of pipes",
        (Option(("--strict",), "warnings count as errors, too"),),
    ),
    Command(
        "draw",
        "draw descriptors, open files and vnodes",
        (
            Option(
                ("-o", "--output"), "an .svg, .html or .dot; - is SVG to standard output", "FILE"
            ),
            Option(("--all",), "fold and group nothing"),
            Option(("--fold",), "fold from so many descriptors on", "N", number=True),
        ),
    ),
    Command(
        "watch",
        "show what changes, until Ctrl-C",
        (_JSON,),
        (Argument("SECONDS", "the time between two readings; 2 if not given", needed=False),),
    ),
    Command(
        "json",
        "write all of it as JSON, in the schema cplayground/1",
        (Option(("--lines",), "one object a line"),),
    ),
    Command(
        "doctor",
        "say why there is nothing to see, and what mends it",
        filters=False,
        source=False,
    ),
)
BY_NAME: Final = {command.name: command for command in COMMANDS}


def options_of(command: Command) -> tuple[Option, ...]:
    """Return all options that a command takes."""
    filters = FILTERS if command.filters else ()
    return (*command.options, *filters, *(SOURCES if command.source else ()), *COMMON)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command line; ``command`` is the command's name.

    The command may be anywhere among the options.  Raises UsageError.  Like all of argparse,
    --help and --version print and raise SystemExit.
    """
    name, rest = _command_first(words)
    return _parser(BY_NAME[name]).parse_args(rest, argparse.Namespace(command_name=name))


def _command_first(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command, and the other words; no command is ls."""
    takes_value = {
        name
        for command in COMMANDS
        for option in options_of(command)
        if option.metavar
        for name in option.names
    }
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        at += 2 if words[at] in takes_value else 1
    if at >= len(words) or words[at] == "--":
        return "ls", list(words)
    if words[at] not in BY_NAME:
        raise UsageError(
            f"there is no command {words[at]}", hint=f"the commands are {', '.join(BY_NAME)}"
        )
    return words[at], [*words[:at], *words[at + 1 :]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def _parser(command: Command) -> argparse.ArgumentParser:
    # An abbreviation would change its meaning with the next option that begins so.
    parser = _Parser(
        prog=f"cplayground {command.name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=None if command.name != "ls" else _others(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = _VERSION.read_text(encoding="ascii").split()[0]
    parser.add_argument("--version", action="version", version=f"cplayground {version}")
    for argument in command.arguments:
        parser.add_argument(
            "argument",
            metavar=argument.name,
            help=argument.help,
            nargs=None if argument.needed else "?",
        )
    for title, options in (
        ("options of the command", command.options),
        ("filters", FILTERS if command.filters else ()),
        ("source", SOURCES if command.source else ()),
        ("output", COMMON),
    ):
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, option)
    return parser


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    if not option.metavar:
        group.add_argument(*option.names, dest=option.key, action="store_true", help=option.help)
        return
    group.add_argument(
        *option.names,
        dest=option.key,
        action="append" if option.many else "store",
        metavar=option.metavar,
        help=option.help,
        type=int if option.number else str,
        choices=option.choices or None,
        default=[] if option.many else option.default,
    )


def _others() -> str:
    lines = [f"  {command.name:8}{command.summary}" for command in COMMANDS]
    return "\n".join(["commands:", *lines, "", "cplayground COMMAND --help tells its options."])
