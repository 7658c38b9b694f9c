"""Documents that were read lately: one that is cut into pieces is read and checked once, not once for each of them."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from plait.batch.documents import Document

BYTES = 1 << 27
"""Of the documents that are kept, all together (128 MiB); the newest one is kept whatever its size."""


class RecentDocuments:
    """The documents last read, for any number of threads: those that want one while it is read wait for it."""

    def __init__(self, read: Callable[[int, int], Document], limit: int = BYTES):
        """``read`` returns a document by the number of its source and its own."""
        self._read, self._limit = read, limit
        self._found: OrderedDict[tuple[int, int], Future] = OrderedDict()
        self._sizes: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def get(self, source: int, number: int) -> Document:
        """Return a document; raises what reading it raised."""
        key = (source, number)
        with self._lock:
            future, must_read = self._found.get(key), False
            if future is None:
                future = self._found[key] = Future()
                must_read = True
            self._found.move_to_end(key)
        if must_read:
            try:
                document = self._read(source, number)
            except BaseException as error:
                with self._lock:
                    del self._found[key]
                future.set_exception(error)
                raise
            future.set_result(document)
            with self._lock:
                self._sizes[key] = sum(
                    p.nbytes for part in document.parts for p in (part.ids, part.latents) if p is not None
                )
                self._forget()
        return future.result()

    def _forget(self) -> None:
        total = sum(self._sizes.values())
        for key in list(self._found)[:-1]:
            if total <= self._limit:
                return
            if key in self._sizes:  # else it is being read
                total -= self._sizes.pop(key)
                del self._found[key]
