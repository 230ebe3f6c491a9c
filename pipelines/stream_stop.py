"""How a stream ends: gently at the first signal, at once at the second."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_LOGGER = logging.getLogger(__name__)


@contextmanager
def stopped_by_signals(stop_file: Path) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM end the reading, so that what was read is finished and committed.

    The second one does what it did before.

    Parameters
    ----------
    stop_file : Path
        Tells the readers, wherever they are, that they shall read no more; removed at the beginning and the end.
    """
    stop_file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def end(number: int, _: FrameType | None) -> None:
        stop_file.touch()
        for each, handler in before.items():
            signal.signal(each, handler)
        _LOGGER.warning("%s: finishing what was read; once more ends at once", signal.Signals(number).name)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)
