"""The command line: tasks for Invoke whose options are data, and Invoke's program around them."""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import locale
import logging
import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invoke import __version__
from invoke.collection import Collection
from invoke.config import Config
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.program import Program
from invoke.tasks import Task
from invoke.terminals import pty_size

from kbuild import configuration, policy
from kbuild.answer import Answer, document
from kbuild.core import places, suites
from kbuild.core.errors import DefectError, KbuildError, UserError, naming
from kbuild.core.model import Settings, Target
from kbuild.core.run import Interrupted, interruptible
from kbuild.core.secrets import redact
from kbuild.fetch import roots
from kbuild.kernel import helpers, kconfig
from kbuild.options import CONFIGURATION, FRAGMENT, JSON, Option, flag, place

PROJECT = Path(__file__).resolve().parents[1]

Body = Callable[..., Answer | int | None]


class Command(Task[Callable[..., None]]):
    """A task whose arguments come from Options instead of a signature."""

    def __init__(
        self, run: Callable[..., None], name: str, options: Sequence[Option], word: str = ""
    ) -> None:
        super().__init__(run, name=name, positional=())
        self.options = tuple(options)
        self.word = word  # name of a positional argument; only old names have one
        self.old = False  # an old name of a command, which --list leaves out

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the options as Invoke's parser takes them."""
        words = [Argument(name=self.word, positional=True)] if self.word else []
        return [*words, *map(_argument, self.options)]


def _argument(option: Option) -> Argument:
    # Invoke answers a bad number with a traceback, so numbers are declared as text.
    kind = option.kind if option.kind in (bool, list) else str
    other = option.argument if option.argument != option.name else None
    default = False if kind is bool else None
    text = option.describe()
    return Argument(name=option.name, kind=kind, default=default, help=text, attr_name=other)


def command(
    *options: Option,
    name: str = "",
    ignores: Mapping[str, Sequence[Option]] | None = None,
    reads: bool = False,
    repairs: bool = False,
    root: bool | Callable[[Mapping[str, Any]], bool] = False,
) -> Callable[[Body], Command]:
    """Make a task of ``body(settings, target, **own)``, which may return an Answer or a status.

    ``name`` is as typed, with its collection ("keys.list").
    ``own`` has the values of options without a key of the configuration, and ``modules``.
    With the option JSON, ``--json`` writes the Answer, or the error, as one JSON document to
    standard output.  All other output of the body and its programs then goes to standard error.
    ``ignores`` has, by an option or an option with a value ("tier=unit"), the options that it
    makes meaningless.  A task that ``reads`` leaves build/ as it is; one that ``repairs`` runs
    in directories that other tasks refuse.  ``root`` says if root privileges are needed, as a
    function of ``own``.  Bad values are refused before the body begins.  An exception ends the
    process with its text on standard error and its exit status.
    """

    def decorate(body: Body) -> Command:
        typed = name or body.__name__.replace("_", "-")

        @functools.wraps(body)
        def run(c: Context, **given: object) -> None:
            # Results have the same modes for every user; apt reads them as a user of its own.
            os.umask(0o022)
            _set_up_log(c)
            written = [Path(os.environ.get("TMPDIR", "/tmp"))]
            task = typed if JSON in options and given[JSON.argument] else ""
            with _exit_status(written, task) as data:
                _set_up_output()
                with _standard_output_apart() if task else contextlib.nullcontext():
                    _check_ignored(options, given, ignores or {})
                    settings, target, own = _request(c.config, options, given)
                    own.pop(JSON.argument, None)
                    data["dry"] = settings.dry
                    written[:0] = [settings.build, settings.cache]
                    if not settings.dry and (root(own) if callable(root) else root):
                        roots.check_privileges()
                    with interruptible(), contextlib.ExitStack() as stack:
                        if not repairs:
                            writes = not (reads or settings.dry)
                            stack.enter_context(places.held(settings, build=writes))
                        status = body(settings, target, **own)
                if isinstance(status, Answer):
                    status = _reply(task, status, data)
                elif task:
                    say(document(task, status or 0, data))
            if status:
                raise Exit(code=status)

        return Command(run, typed.rpartition(".")[2], options)

    return decorate


def _check_ignored(
    options: Sequence[Option], given: Mapping[str, object], ignores: Mapping[str, Sequence[Option]]
) -> None:
    by_name = {one.name: one for one in options}
    for cause, ignored in ignores.items():
        name, _, value = cause.partition("=")
        if not given[by_name[name].argument] or (value and given[name] != value):
            continue
        wrong = " and ".join(one.typed for one in ignored if given[one.argument])
        if wrong:
            said = f"{by_name[name].typed} {value}".strip()
            raise UserError(f"{wrong} would be ignored with {said}", hint=f"leave out {wrong}")


def _request(
    config: Config, options: Sequence[Option], given: Mapping[str, object]
) -> tuple[Settings, Target, dict[str, Any]]:
    """Return what a task is asked for, checked; raises UserError."""
    mine = {one.key: one for one in options if one.key}
    found: dict[str, Any] = {}
    for key, value in configuration.read(config, os.environ).items():
        one = mine.get(key, CONFIGURATION[key])
        said = given[one.argument] if key in mine else None
        # A later fragment has the last word, a mirror the first.
        found[key] = one.value(value, said) if one is FRAGMENT else one.value(said, value)
        # A task for a kernel may have fixed options where others have these.
        if key in mine or ("suite" in mine and key in ("flavour", "variant")):
            one.check(found[key], "" if said else key)
    own = {one.argument: one.value(given[one.argument]) for one in options if not one.key}
    for one in options:
        if not one.key:
            one.check(own[one.argument])
    if "modules" in mine:
        own["modules"] = found["modules"]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    data = _data_home() / "cplayground-kernel"
    settings = Settings(
        project=PROJECT,
        # Relative paths are resolved against the checkout.
        build=place("build_dir", found["build_dir"], PROJECT),
        cache=place("cache_dir", found["cache_dir"] or str(caches / "cplayground-kernel"), PROJECT),
        jobs=found["jobs"] or len(os.sched_getaffinity(0)),
        offline=found["offline"],
        dry=flag("run.dry", config.run.dry or ""),
        mirrors=found["mirrors"],
        revision=found["revision"],
        accept_expired=found["accept_expired"],
        remote_cache=found["remote_cache"] or "",
        scheduler=found["scheduler"] or "",
        archive=place("archive_dir", found["archive_dir"] or str(data / "archive"), PROJECT),
        archive_url=found["archive_url"] or "",
        keys=place("keys_dir", found["keys_dir"] or str(data / "keys"), PROJECT),
        signing_key=found["signing_key"] or "",
        sign_command=_words("sign_command", found["sign_command"] or ""),
        mok_key=_file("mok_key", found["mok_key"]),
        mok_certificate=_file("mok_certificate", found["mok_certificate"]),
        mok_sign_command=_words("mok_sign_command", found["mok_sign_command"] or ""),
        policy=policy.of(
            found,
            {
                key: _words(key, found[key] or "")
                for key in ("watch_health_command", "watch_notify_command")
            },
        ),
    )
    helpers.check(settings)
    target = Target(
        suite=found["suite"] or suites.own_suite(),
        flavour=found["flavour"] or suites.own_flavour(),
        variant=found["variant"],
        version=found["kernel_version"],
        fragments=tuple(place("fragment", text, Path.cwd()) for text in found["fragments"]),
    )
    if "suite" in mine:
        for path in target.fragments:
            kconfig.read(path)
    return settings, target, own


def _file(key: str, text: str | None) -> Path | None:
    return place(key, text, PROJECT) if text else None


def _data_home() -> Path:
    """Return the directory of data that outlives a checkout; a service's user has no home."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser())
    return Path("/var/lib")


def _words(key: str, text: str) -> tuple[str, ...]:
    """Split a command as a shell would, without running one; raises UserError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        # Its words may have a secret.
        raise UserError(f"{key} is not a command", found=str(error)) from error


class _Formatter(logging.Formatter):
    """Write a log line, and the traceback that may follow it, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _set_up_log(c: Context) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("kbuild")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if c.config.run.echo else logging.INFO)
    root.propagate = False


def _set_up_output() -> None:
    """Make every name printable; refuse a locale in which files are not read as UTF-8."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name != "utf-8":
        raise UserError(
            f"Python reads and writes files as {encoding} in this locale",
            expected="UTF-8",
            hint="run ./inv, which sets UTF-8; or set PYTHONUTF8=1",
        )


@contextlib.contextmanager
def _standard_output_apart() -> Iterator[None]:
    """Send to standard error what the block and the programs that it starts print."""
    if sys.stdout is None:
        raise UserError("--json writes to standard output, which is closed")
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _reply(task: str, answer: Answer, data: dict[str, Any]) -> int:
    """Print an answer, of a ``task`` that was asked for JSON as a document; return its status.

    Raises the answer's error, after its text or with its data in ``data``.
    """
    data.update(answer.data)
    if not task:
        for text in (answer.text, "" if answer.error else answer.summary):
            if text:
                say(text.rstrip("\n"))
    if answer.error is not None:
        raise answer.error
    if task:
        say(document(task, answer.status, data, summary=answer.summary))
        if answer.summary:
            _say_last(answer.summary)
    return answer.status


@contextlib.contextmanager
def _exit_status(written: Sequence[Path], task: str = "") -> Iterator[dict[str, Any]]:
    """Turn an exception into its text on standard error and its exit status.

    ``written`` are the directories that a run writes to; the fullest is named for a full disk.
    With a ``task``, a JSON document on standard output has the error, and the yielded data.
    """
    data: dict[str, Any] = {}
    try:
        yield data
    except Exit:
        raise
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        what = "interrupted; the same command continues"
        _say_last(what)
        if task:
            stopped = {"kind": "interrupted", "what": what, "status": 128 + signum}
            say(document(task, 128 + signum, data, error=stopped))
        raise Exit(code=128 + signum) from None
    except Exception as error:
        known = error if isinstance(error, KbuildError) else DefectError.of(error, written)
        if isinstance(known, DefectError) and known is not error:
            logging.getLogger("kbuild").error("unexpected exception", exc_info=error)
        _say_last(f"{known.kind} error: {known}")
        if task:
            say(document(task, known.exit_status, data, error=known))
        raise Exit(code=known.exit_status) from error


def _say_last(text: str) -> None:
    """Write a line to standard error, if it is still open: a terminal may be gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        # Python would write it again when it ends, and exit with a status of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def say(text: str) -> None:
    """Print a result, without passwords."""
    try:
        with naming(Path("standard output")):
            print(redact(text), flush=True)
    except OSError as error:
        # Python would write the rest when it ends, and complain.
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise Exit(code=128 + signal.SIGPIPE) from None
        raise


def old_name(old: str, new: Mapping[str, Command], word: str = "") -> Command:
    """Return the command ``new`` under its old name; it tells the new one, for one release.

    The positional argument ``word`` chooses one of several commands: bench build.
    """
    options = tuple(dict.fromkeys(option for one in new.values() for option in one.options))

    def run(c: Context, **given: object) -> None:
        name = f"{old}.{given.pop(word)}" if word else "".join(new)
        with _exit_status([]):
            if name not in new:
                raise UserError(f"there is no task {name}", expected=" or ".join(new))
            _say_last(f"'{old}' is now '{name}': the old name will be removed in the next release")
            wrong = [one for one in options if given[one.argument] and one not in new[name].options]
            if wrong:
                raise UserError(f"{name} has no option {wrong[0].typed}")
            known = {one.argument: given[one.argument] for one in new[name].options}
            new[name].body(c, **known)

    run.__doc__ = f"Old name of {' and '.join(new)}."
    made = Command(run, word or old, options, word)
    made.old = True
    return made


class _Program(Program):
    """Invoke's program, without the old names of commands in its list."""

    def list_tasks(self) -> None:
        self.scoped_collection = _current(self.scoped_collection)
        super().list_tasks()

    def parse_core(self, argv: list[str] | None) -> None:
        super().parse_core(argv)
        # Completion scripts pass the program as it was typed, with a directory: ./inv.
        self.core.remainder = re.sub(r"^\S*/", "", self.core.remainder)

    def parse_tasks(self) -> None:
        self.core.unparsed = list(_named(self.core.unparsed, self.collection))
        super().parse_tasks()

    def parse_cleanup(self) -> None:
        # The help of a collection is the list of its tasks.
        name = self.args.help.value
        if name in self.collection.collections:
            self.args.help.set_value(None, cast=False)
            self.args.list.set_value(name)
        if self.args.complete.value:
            self.collection = _current(self.collection)
        super().parse_cleanup()

    def print_columns(self, tuples: Sequence[tuple[str, str | None]]) -> None:
        width = max(len(name) for name, _ in tuples)
        wrapper = textwrap.TextWrapper(
            pty_size()[0] - 1,
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
            break_long_words=False,
        )
        for name, text in tuples:
            wrapper.initial_indent = f"  {name:<{width}}  "
            print(wrapper.fill(text or "") or wrapper.initial_indent.rstrip())
        print()


def _named(words: Iterable[str], collection: Collection) -> Iterator[str]:
    """Yield the words of a command line, with the name of each option that has been left out.

    Invoke itself only knows positional arguments that may not be left out.
    """
    names = collection.task_names
    task = ""
    for word in words:
        options = getattr(collection[task], "options", ()) if task in names else ()
        if word not in names and not word.startswith("-"):
            yield from (option.typed for option in options if option.first)
        yield word
        task = word


def _current(collection: Collection) -> Collection:
    """Return a collection without the old names of commands."""
    found = Collection(str(collection.name or ""))
    for name, task in collection.tasks.items():
        if not getattr(task, "old", False):
            found.add_task(task, name)
    for name, inner in collection.collections.items():
        found.add_collection(_current(inner), name)
    return found


def program(namespace: Collection | None = None) -> Program:
    """Return the program; without a namespace it looks for tasks.py, as Invoke does."""
    return _Program(
        name="Invoke",
        binary="./inv",
        binary_names=["inv", "invoke"],
        version=__version__,
        config_class=configuration.Config,
        namespace=namespace,
    )


if Path(sys.argv[0]).name in ("invoke", Path(__file__).name):
    # --list and --help end as other programs do when their reader has gone.  Tasks handle that
    # themselves: a server that hangs up must not end them.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)

if __name__ == "__main__":
    # tasks.py imports this module under its own name, so that is the one to run.
    from kbuild import cli

    cli.program().run()
