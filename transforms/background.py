"""Writing to the database while the next batch is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Final, Generic, TypeVar

Answer = TypeVar("Answer")
# Of each transform; what waits is in memory.
_WAITING: Final = 2


class Background(Generic[Answer]):
    """Calls that are made one after the other in a thread of the process, whichever transform asks for them.

    So what one transform writes before another, in the order of the elements, is written before. A bundle must have
    all answers before it ends.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Answer], Any]] = deque()

    def ask(self, call: Callable[[], Answer], about: Any) -> Iterator[tuple[Answer, Any]]:
        """Have a call made, and give the answers that are there by now, each with what it is about.

        Raises
        ------
        Exception
            What a call raised.
        """
        self._waiting.append((_thread().submit(call), about))
        while self._waiting and (len(self._waiting) > _WAITING or self._waiting[0][0].done()):
            yield self._next()

    def rest(self) -> Iterator[tuple[Answer, Any]]:
        """Wait for the answers that are missing."""
        while self._waiting:
            yield self._next()

    def forget(self) -> None:
        """Have the calls not made that can still be kept back, and wait for the one that cannot."""
        for future, _ in self._waiting:
            future.cancel()
        for future, _ in self._waiting:
            if not future.cancelled():
                future.exception()
        self._waiting.clear()

    def _next(self) -> tuple[Answer, Any]:
        future, about = self._waiting.popleft()
        return future.result(), about


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="writing")
