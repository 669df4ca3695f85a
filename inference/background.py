"""Files are written in another thread while the network works on what comes next."""
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

PENDING = 4  # files that may wait to be written: their pictures and meshes are in memory


class BackgroundWriter:
    """Does work in one other thread, in the order in which it is handed over, by whichever thread.

        with BackgroundWriter() as later:
            later(save_mesh, path, mesh)

    What the work raises is raised by a later call, or at the end of the block, and work after it is left out: it may
    build on what failed, as the index does on the files that it lists. The block ends when all work is done; where an
    error ends it that is no KeyboardInterrupt, work that was not begun is left out.
    """

    def __init__(self):
        self._pool, self._pending, self._lock = ThreadPoolExecutor(1), deque(), threading.Lock()
        self._failure = None

    def __call__(self, function, *arguments):
        with self._lock:
            while len(self._pending) >= PENDING or self._pending and self._pending[0].done():
                self._pending.popleft().result()
            self._pending.append(self._pool.submit(self._work, function, arguments))

    def _work(self, function, arguments):
        if self._failure:
            raise self._failure
        try:
            function(*arguments)
        except BaseException as error:
            self._failure = error
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._pool.shutdown(cancel_futures=kind is not None and issubclass(kind, Exception))
        if kind is None:
            for work in self._pending:
                work.result()
