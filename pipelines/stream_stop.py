"""How a stream ends: gently at the first signal, at once at the second; and how its pipeline is taken up anew."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_LOGGER = logging.getLogger(__name__)


class Stop:
    """Tells the readers, by a file, that they shall read no more, so that what was read is finished and committed.

    Parameters
    ----------
    file : Path
        Wherever the readers are, they look for it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._asked = self._renewed = False

    def ask(self) -> None:
        """End for good."""
        self._asked = True
        self._file.touch()

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """End the reading, for :meth:`renewed`, if the block lasts longer."""
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._renew)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def renewed(self) -> bool:
        """Say whether the reading ended only to be taken up anew, and let it."""
        renewed, self._renewed = self._renewed and not self._asked, False
        if renewed:
            self._file.unlink(missing_ok=True)
        return renewed

    def _renew(self) -> None:
        self._renewed = True
        self._file.touch()


@contextmanager
def stopped_by_signals(file: Path) -> Iterator[Stop]:
    """Let the first SIGINT or SIGTERM end the reading; the second one does what it did before.

    Parameters
    ----------
    file : Path
        See :class:`Stop`; removed at the beginning and the end.
    """
    file.unlink(missing_ok=True)
    stop = Stop(file)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def end(number: int, _: FrameType | None) -> None:
        stop.ask()
        for each, handler in before.items():
            signal.signal(each, handler)
        _LOGGER.warning("%s: finishing what was read; once more ends at once", signal.Signals(number).name)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        file.unlink(missing_ok=True)
