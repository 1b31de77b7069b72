import os
import signal
import time

import pytest

from bootwright.errors import BootwrightError, VerificationError
from bootwright.repo.workers import Event, Report, available_processors, run_jobs


def collect(jobs: list[int], work: object, processes: int = 2) -> list[Event]:
    assert callable(work)
    with run_jobs(jobs, work, processes=processes) as events:
        return list(events)


def test_every_job_gives_its_result() -> None:
    events = collect(list(range(50)), lambda job, _report: str(job * job).encode(), processes=4)
    assert {event.job: event.result for event in events} == {job: str(job * job).encode() for job in range(50)}


def test_jobs_start_in_the_order_given() -> None:
    events = collect([3, 1, 2, 0], lambda _job, _report: str(time.monotonic_ns()).encode(), processes=1)
    assert [event.job for event in events] == [3, 1, 2, 0]


def test_no_jobs() -> None:
    assert collect([], lambda _job, _report: b"") == []


def test_progress_comes_before_the_result() -> None:
    def work(job: int, report: Report) -> bytes:
        report(10)
        report(1 << 40)
        return b"done"

    assert collect([7], work) == [Event(7, 10), Event(7, 1 << 40), Event(7, result=b"done")]


def test_big_results() -> None:
    (event,) = collect([0], lambda _job, _report: bytes(20 << 20))
    assert event.result == bytes(20 << 20)


def test_workers_see_the_memory_of_the_caller() -> None:
    value = {"key": b"made before"}
    (event,) = collect([0], lambda _job, _report: value["key"])
    assert event.result == b"made before"


def test_our_errors_arrive_whole_and_stop_the_others() -> None:
    def work(job: int, _report: Report) -> bytes:
        if job == 0:
            raise VerificationError("bad bytes", hint="try again")
        time.sleep(600)
        return b""

    with pytest.raises(VerificationError, match="bad bytes") as caught:
        collect([1, 0], work)
    assert caught.value.hint == "try again"


def test_a_bug_arrives_with_its_traceback() -> None:
    def work(_job: int, _report: Report) -> bytes:
        raise KeyError("oops")

    with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*KeyError: 'oops'"):
        collect([0], work)


def test_a_killed_worker_is_an_error() -> None:
    def work(_job: int, _report: Report) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with pytest.raises(BootwrightError, match="was killed by SIGKILL"):
        collect([0], work)


def test_nobody_is_left_when_the_caller_stops_early() -> None:
    pids: list[int] = []

    def work(job: int, report: Report) -> bytes:
        report(os.getpid())
        time.sleep(600)
        return b""

    with run_jobs([0, 1], work, processes=2) as events:
        for event in events:
            pids.append(event.count)
            if len(pids) == 2:
                break
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processors() -> None:
    assert available_processors() >= 1
