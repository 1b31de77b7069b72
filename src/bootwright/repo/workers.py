"""Worker processes: jobs go out, progress and results come back.

Threads share one interpreter lock, and hashing in 4 KiB blocks from two of them is slower than from one; processes
give twice the speed on two processors. They are forked, so that they cost a few milliseconds and need nothing passed to
them: ``work`` sees the caller's memory as it was. So the caller must have no other threads that hold locks.

Jobs are taken from a pipe that is filled before the first worker starts, in the order given: the biggest first keeps
all of them busy to the end. Each worker answers on a pipe of its own::

    u8 kind · u16 job · u32 length · payload     kinds: progress (u64), done (bytes), failed (pickled error), bug (text)

A worker dies with its parent, whatever kills it (PR_SET_PDEATHSIG); Ctrl-C is the parent's business.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import selectors
import signal
import struct
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bootwright.errors import BootwrightError
from bootwright.linux import files

__all__ = ["Event", "available_processors", "run_jobs"]

_HEAD = struct.Struct("<BHI")
_JOB = struct.Struct("<H")
_COUNT = struct.Struct("<Q")
_PROGRESS, _DONE, _FAILED, _BUG = range(4)
_PR_SET_PDEATHSIG = 1
# The queue must fit a pipe's buffer as a whole.
_JOBS_MAX = 16384

Report = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Event:
    """News from a worker: ``result`` is None for progress, of which ``count`` says how much."""

    job: int
    count: int = 0
    result: bytes | None = None


def available_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def run_jobs(order: list[int], work: Callable[[int, Report], bytes], *, processes: int) -> Iterator[Iterator[Event]]:
    """Run ``work(job, report)`` for every job in worker processes.

    They are forked when the context is entered; what may start threads belongs inside. It gives an iterator of what
    they tell. When the context is left, for whatever reason, no worker is left.

    Args:
        order: numbers of the jobs, in the order in which they are to be started.
        work: runs in a worker; returns bytes; may call ``report`` with a growing count.
        processes: how many workers at most.

    Raises:
        BootwrightError: in the iteration: what ``work`` raised, or a worker died.
        RuntimeError: in the iteration: ``work`` has a bug; the message is the worker's traceback.
    """
    if len(order) > _JOBS_MAX:
        raise ValueError(f"{len(order)} jobs are more than {_JOBS_MAX}")
    queue_out, queue_in = os.pipe2(os.O_CLOEXEC)
    pool = _Pool()
    try:
        try:
            os.write(queue_in, b"".join(_JOB.pack(job) for job in order))
        finally:
            os.close(queue_in)
        try:
            for _ in range(min(processes, len(order))):
                pool.start(queue_out, work)
        finally:
            os.close(queue_out)
        yield pool.events(len(order))
    finally:
        pool.stop()


class _Pool:
    """The running workers, each with the pipe it answers on."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, int] = {}
        self._received: dict[int, bytearray] = {}

    def start(self, queue: int, work: Callable[[int, Report], bytes]) -> None:
        """Fork one worker."""
        answer_out, answer_in = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 warns when it sees other threads; see the module's description.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _run_worker(parent, queue, answer_in, work)
        os.close(answer_in)
        self._workers[answer_out] = pid
        self._received[answer_out] = bytearray()
        self._selector.register(answer_out, selectors.EVENT_READ)

    def events(self, jobs: int) -> Iterator[Event]:
        """Yield events until all jobs are done."""
        left = jobs
        while left:
            for key, _ in self._selector.select():
                fd = key.fd
                data = os.read(fd, 1 << 20)
                if not data:
                    self._end(fd)
                    continue
                for event in _parse(self._received[fd], data):
                    left -= event.result is not None
                    yield event
            if left and not self._workers:
                raise BootwrightError("the worker processes ended before their work was done")

    def _end(self, fd: int) -> None:
        """Meet the end of a worker's answers: fine when it exits with 0."""
        self._selector.unregister(fd)
        os.close(fd)
        pid = self._workers.pop(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            raise BootwrightError(f"a worker process {how}", hint="is there enough memory? see: dmesg | tail")

    def stop(self) -> None:
        """Kill what still runs and wait for it. Unnamed files of a killed worker vanish with it."""
        for fd, pid in self._workers.items():
            os.close(fd)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._workers.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._workers.clear()
        self._selector.close()


def _parse(received: bytearray, data: bytes) -> Iterator[Event]:
    received += data
    while len(received) >= _HEAD.size:
        kind, job, length = _HEAD.unpack_from(received)
        end = _HEAD.size + length
        if len(received) < end:
            return
        payload = bytes(memoryview(received)[_HEAD.size : end])
        del received[:end]
        if kind == _PROGRESS:
            yield Event(job, _COUNT.unpack(payload)[0])
        elif kind == _DONE:
            yield Event(job, result=payload)
        elif kind == _FAILED:
            # The bytes come from our own child through a private pipe.
            raise pickle.loads(payload)  # noqa: S301
        else:
            raise RuntimeError(f"in a worker process:\n{payload.decode('utf-8', 'replace')}")


def _run_worker(parent: int, queue: int, answer: int, work: Callable[[int, Report], bytes]) -> None:
    """Take jobs until there are none; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        files.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        # Nothing that was made before is garbage of ours, and what comes is short-lived or kept.
        gc.disable()
        while head := os.read(queue, _JOB.size):
            _answer(_JOB.unpack(head)[0], answer, work)
        status = 0
    except BrokenPipeError:
        pass
    finally:
        os._exit(status)


def _answer(job: int, answer: int, work: Callable[[int, Report], bytes]) -> None:
    def report(count: int) -> None:
        _send(answer, _PROGRESS, job, _COUNT.pack(count))

    try:
        result = work(job, report)
    except BootwrightError as exc:
        _send(answer, _FAILED, job, pickle.dumps(exc))
    except Exception:  # noqa: BLE001  told to the parent, which raises it
        _send(answer, _BUG, job, traceback.format_exc().encode())
    else:
        _send(answer, _DONE, job, result)


def _send(fd: int, kind: int, job: int, payload: bytes) -> None:
    files.write_all(fd, _HEAD.pack(kind, job, len(payload)) + payload)
