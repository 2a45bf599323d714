"""Give work a head start in a process of its own, while this one does something else."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator

from kbuild.core.errors import KbuildError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def started(work: Callable[[], object]) -> Iterator[None]:
    """Do ``work`` in a child process while the block runs, and wait for it at the block's end.

    The child's result counts for nothing: work is to keep what it makes, and the caller does it
    again, to find that or to meet its error.  An exception in the block ends the child with the
    programs that it started, and a signal that interrupts this process does, too.
    """
    # A thread could not be interrupted, and would not end the programs that it started.
    child = multiprocessing.get_context("fork").Process(target=_do, args=(work,))
    child.start()
    try:
        yield
        child.join()
    finally:
        if child.is_alive():
            child.terminate()
            child.join()


def _do(work: Callable[[], object]) -> None:
    # Ctrl-C reaches both processes.  The parent's signal then ends this one, once.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        work()
    except KbuildError as error:
        logger.debug("beside: %s", error)
    except KeyboardInterrupt:
        # The parent tells of it.
        logger.debug("beside: interrupted")
