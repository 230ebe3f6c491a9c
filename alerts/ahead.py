"""Work done one step ahead, in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of an iterator, which meanwhile makes the next one.

    Inflating lets go of the interpreter, so that a portion of an archive is inflated while the one before it is
    decoded. What the iterator raises is raised where its next item would be. An iterator left early is closed.
    """
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(1)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
                if stop.is_set():
                    return
            ready.put((None, StopIteration()))
        except BaseException as error:  # raised again in the reader's thread
            ready.put((None, error))

    thread = threading.Thread(target=work, name="one-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.02)
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:
            close()
