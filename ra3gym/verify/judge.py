"""Whether programs solve their tasks: `Judge` has workers run them, shut in, and compares the answers out here.

A program gets its inputs and nothing else: what is expected stays in this process, or, for tests that are code, in a
process of the tests' own that calls the program over a pipe. docs/judge.md says what that protects against.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import cast, get_args

from ra3gym.errors import ConfigError, DataError, JudgeError, SandboxUnavailable, UnknownNameError
from ra3gym.tasks.task import CodeTask
from ra3gym.verify.grading import Exam, prepare, verdict
from ra3gym.verify.runs import Outcome, Run
from ra3gym.verify.verdict import Limits, Status, Verdict
from ra3gym.verify.worker import Isolation, Worker, ZygoteDied

_CHUNK = 16
_EXAMS = 4096
_ATTEMPTS = 5
_CLOSED = "the judge was closed before this was graded"
_NEVER_CACHED = (Status.TIMEOUT, Status.MEMORY, Status.CRASH)  # another run may end otherwise

Key = tuple[str, str]
"""The digest of an exam and a program's source: what decides a verdict."""


class Judge:
    """Grades programs against their tasks' tests, on `workers` isolated workers.

    Args:
        workers: workers that run programs in parallel, at least 1; the cores you can spare.
        limits: what each run of a program may use.
        cache_size: verdicts kept for programs seen before; 0 keeps none. Timeouts are never kept.
        stop_early: leave a program's later tests out once one has failed (they count as failed). Function tests stop
            at those that raise or end the program alone: the others' answers are compared when all are there.
        isolation: "namespaces" shuts programs in; "process" runs each in a fresh interpreter under resource limits
            (and seccomp and Landlock, where the kernel has them): slower, less safe, and refused for root unless it is
            "process-as-root". `None` takes the environment variable RA3GYM_ISOLATION, or else "namespaces".

    Raises:
        ConfigError: `workers < 1` or `cache_size < 0`.
        SandboxUnavailable: this machine cannot isolate programs as asked; the message names the step that failed.

    Use it as a context manager, or call `close`. Threads may share a judge; processes may not.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        limits: Limits | None = None,
        cache_size: int = 8192,
        stop_early: bool = False,
        isolation: Isolation | None = None,
    ) -> None:
        if workers < 1:
            raise ConfigError(f"workers must be at least 1, got {workers}")
        if cache_size < 0:
            raise ConfigError(f"cache_size must not be negative, got {cache_size}")
        self.limits = limits or Limits()
        self._cache_size = cache_size
        self._cache: OrderedDict[Key, Verdict] = OrderedDict()
        self._exams: OrderedDict[int, Exam] = OrderedDict()
        self._lock = threading.Lock()
        self._num_workers = workers
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._stop_early = stop_early
        self.isolation = _isolation(isolation or os.environ.get("RA3GYM_ISOLATION") or "namespaces")
        self._workers = [Worker(self.isolation) for _ in range(workers)]
        try:
            for worker in self._workers:
                worker.wait_until_ready()
                self._idle.put(worker)
        except BaseException as error:
            for worker in self._workers:
                worker.close()
            if isinstance(error, ZygoteDied):
                raise JudgeError(f"a worker of the judge does not start: {error}") from None
            raise
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="ra3gym-judge")
        self._pid = os.getpid()
        self._closed = False

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    def grade(self, pairs: Iterable[tuple[CodeTask, str]]) -> list[Verdict]:
        """One verdict per (task, solution source), in order; equal pairs are run once.

        Raises:
            DataError: a task without tests, or a solution that is not a string (both are `ValueError`).
            JudgeError: the judge is closed, or this machine cannot run programs: never a verdict on one.
        """
        return self.submit(pairs).result()

    def submit(self, pairs: Iterable[tuple[CodeTask, str]]) -> Future[list[Verdict]]:
        """Like `grade`, without waiting: for grading while the model generates. Raises on bad input at once."""
        if self._closed:
            raise JudgeError("this judge is closed; make a new one")
        if os.getpid() != self._pid:
            raise JudgeError("this judge belongs to another process; make one in each process")
        keys: list[Key] = []
        known: dict[Key, Verdict] = {}
        todo: dict[Key, Exam] = {}
        for task, source in pairs:
            exam = self._exam(task)
            if not isinstance(source, str):
                raise DataError(f"a solution of task {task.task_id!r} must be a str, got {type(source).__name__}")
            key = (exam.digest, source)
            keys.append(key)
            cached = self._cached(key)
            if cached is None:
                todo[key] = exam
            else:
                known[key] = cached
        return self._gather(keys, known, list(todo.items()))

    def close(self, *, cancel: bool = False) -> None:
        """End the workers, after what was submitted or, with `cancel`, at once.

        Futures that are cancelled so raise `JudgeError`. Safe to call twice.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        if cancel:
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=cancel)
        for worker in self._workers:
            worker.close()

    def _gather(
        self, keys: list[Key], known: dict[Key, Verdict], todo: list[tuple[Key, Exam]]
    ) -> Future[list[Verdict]]:
        """A future of the verdicts of `keys`, with those of `todo` worked out in chunks by the workers."""
        size = max(1, min(_CHUNK, -(-len(todo) // (2 * self._num_workers))))
        chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
        result: Future[list[Verdict]] = Future()
        result.set_running_or_notify_cancel()
        waiting = len(chunks)
        lock = threading.Lock()

        def arrived(part: Future[dict[Key, Verdict]]) -> None:
            nonlocal waiting
            error = JudgeError(_CLOSED) if part.cancelled() else part.exception()
            with lock:
                waiting -= 1
                if error is None:
                    known.update(part.result())
                last = waiting == 0
                if result.done():
                    return
                if error is not None:
                    result.set_exception(error)
                elif last:
                    result.set_result([known[key] for key in keys])

        if not chunks:
            result.set_result([known[key] for key in keys])
        for chunk in chunks:
            self._threads.submit(self._run_chunk, chunk).add_done_callback(arrived)
        return result

    def _run_chunk(self, chunk: list[tuple[Key, Exam]]) -> dict[Key, Verdict]:
        worker = self._idle.get()
        try:
            if self._stop_early:  # one run at a time, to see before the next how it went
                outcomes = [self._outcomes_until_failure(worker, exam, source) for (_, source), exam in chunk]
            else:
                runs = [run for job, ((_, source), exam) in enumerate(chunk) for run in exam.runs(source, job)]
                arrived = iter(self._outcomes(worker, runs, [exam for _, exam in chunk]))
                outcomes = [list(itertools.islice(arrived, len(exam.programs))) for _, exam in chunk]
            verdicts = {
                key: verdict(exam, found, self.isolation) for (key, exam), found in zip(chunk, outcomes, strict=True)
            }
        finally:
            self._idle.put(worker)
        with self._lock:
            for key, answer in verdicts.items():
                if answer.status not in _NEVER_CACHED:
                    self._cache[key] = answer
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return verdicts

    def _outcomes_until_failure(self, worker: Worker, exam: Exam, source: str) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for run in exam.runs(source, 0):
            outcomes += self._outcomes(worker, [run], [exam])
            if not verdict(exam, outcomes).tests[len(outcomes) - 1]:
                break
        return outcomes

    def _outcomes(self, worker: Worker, runs: list[Run], exams: list[Exam]) -> list[Outcome]:
        """The outcome of each run; where a zygote dies, the run that it died in is made again by a new one."""
        outcomes: list[Outcome] = []
        attempts = 0
        while True:
            try:
                outcomes += worker.ask(runs[len(outcomes) :])
                _refuse_broken(outcomes)
                return outcomes
            except ZygoteDied as error:
                if self._closed:
                    raise JudgeError(_CLOSED) from None
                attempts = 1 if error.outcomes else attempts + 1
                outcomes += error.outcomes
                if attempts == _ATTEMPTS:
                    task = exams[runs[len(outcomes)].job].task
                    raise JudgeError(
                        f"a worker died {attempts} times in a row at a program for task {task.task_id!r}: {error}. "
                        "No verdict on it: is this machine out of memory or processes?"
                    ) from None

    def _cached(self, key: Key) -> Verdict | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _exam(self, task: CodeTask) -> Exam:
        with self._lock:
            exam = self._exams.get(id(task))
            if exam is None:
                exam = prepare(task, self.limits, self._stop_early)
                self._exams[id(task)] = exam  # it holds the task, so the id stays its own
                if len(self._exams) > _EXAMS:
                    self._exams.popitem(last=False)
            return exam


def _refuse_broken(outcomes: Iterable[Outcome]) -> None:
    """A machine that could not set a process up has no say about a program."""
    for outcome in outcomes:
        if outcome.tests is not None:
            _refuse_broken([outcome.tests])
        if outcome.ended == "broken":
            reason = "; ".join(outcome.frames) or "its process died at once, is this machine out of memory?"
            raise JudgeError(f"the sandbox of a program could not be set up: {reason}. `ra3gym doctor` says more")


def _isolation(name: str) -> Isolation:
    if name not in get_args(Isolation):
        raise UnknownNameError("isolation", name, get_args(Isolation), "It may come from RA3GYM_ISOLATION.")
    if name == "process" and os.geteuid() == 0:
        raise SandboxUnavailable(
            "isolation 'process' leaves programs the rights of the user who runs it, and that is root: run as another "
            "user, or say 'process-as-root' (Judge(isolation=...) or RA3GYM_ISOLATION)"
        )
    return cast(Isolation, name)
