"""Whether programs solve their tasks: `Judge` runs them on isolated workers and compares their answers here.

A task becomes an `Exam`, a program's source with its exam a few `Run`s. A worker makes the runs and returns their
`Outcome`s, and `reach_verdict` decides. A program gets its inputs and nothing else. Expected values stay in this
process or, for tests that are code, in another process that calls the program over a socket. docs/judge.md says what
that protects against.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import cast, get_args

from ra3gym.errors import ConfigError, DataError, JudgeError, SandboxUnavailable, UnknownNameError
from ra3gym.tasks.task import CodeTask
from ra3gym.verify.exam import Exam, prepare_exam
from ra3gym.verify.run import Limits, Outcome, Run
from ra3gym.verify.verdict import Status, Verdict, reach_verdict
from ra3gym.verify.worker import Isolation, ServerDied, Worker

_MAX_CHUNK = 16
_MAX_EXAMS = 4096
_MAX_ATTEMPTS = 5
_CLOSED = "the judge was closed before this was graded"
_NEVER_CACHED = (Status.TIMEOUT, Status.MEMORY, Status.CRASH)  # the next run may end differently

Key = tuple[str, str]
"""The digest of an exam and a program's source, which together decide a verdict."""


class Judge:
    """Grades programs against their tasks' tests, on `workers` isolated workers.

    Args:
        workers: workers that run programs in parallel, at least 1; usually the number of free cores.
        limits: what each run of a program may use.
        cache_size: verdicts kept for programs seen before; 0 keeps none. Timeouts, crashes and verdicts of `memory`
            are never kept.
        stop_early: skip a program's tests after the first failure; they count as failed. Function tests stop only
            when the program ends, because their answers are compared afterwards.
        isolation: "namespaces" isolates programs fully; "process" runs each in a fresh interpreter under resource
            limits (with seccomp and Landlock if the kernel has them). That is slower and less safe. Root must write
            "process-as-root" for it. `None` takes the environment variable RA3GYM_ISOLATION, or else "namespaces".

    Raises:
        ConfigError: `workers < 1` or `cache_size < 0`.
        SandboxUnavailable: this machine cannot isolate programs as asked; the message names the step that failed.

    Use it as a context manager, or call `close`; a judge that is garbage-collected ends its workers too. Threads may
    share a judge, processes may not.
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
            if isinstance(error, ServerDied):
                raise JudgeError(f"a worker of the judge does not start: {error}") from None
            raise
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="ra3gym-judge")
        self._pid = os.getpid()
        self._closed = False
        self._end_workers = weakref.finalize(self, _end_workers, self._workers, self._pid)

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    def grade(self, pairs: Iterable[tuple[CodeTask, str]]) -> list[Verdict]:
        """Return one verdict for each pair of a task and a program's source, in order; equal pairs run once.

        Raises:
            DataError: a task has no tests, or a program is not a string; it is a `ValueError` too.
            JudgeError: the judge is closed, or this machine cannot run programs.
        """
        return self.submit(pairs).result()

    def submit(self, pairs: Iterable[tuple[CodeTask, str]]) -> Future[list[Verdict]]:
        """Like `grade`, but without waiting, to grade while a model generates. Bad input raises at once."""
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
        """End the workers: after all submitted programs are graded or, with `cancel`, at once.

        Cancelled futures raise `JudgeError`. Safe to call twice.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        if cancel:
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=cancel)
        self._end_workers()

    def _gather(
        self, keys: list[Key], known: dict[Key, Verdict], todo: list[tuple[Key, Exam]]
    ) -> Future[list[Verdict]]:
        """Return a future of the verdicts of `keys`; the workers grade those of `todo` in chunks."""
        two_for_each_worker = -(-len(todo) // (2 * self._num_workers))
        size = max(1, min(_MAX_CHUNK, two_for_each_worker))
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
            if self._stop_early:  # one run at a time, because its outcome decides on the next one
                outcomes = [self._outcomes_until_failure(worker, exam, source) for (_, source), exam in chunk]
            else:
                runs = [run for i, ((_, source), exam) in enumerate(chunk) for run in exam.runs(source, i)]
                in_order = iter(self._outcomes(worker, runs, [exam for _, exam in chunk]))
                outcomes = [list(itertools.islice(in_order, len(exam.jobs))) for _, exam in chunk]
            verdicts = {
                key: reach_verdict(exam, of_program, self.isolation)
                for (key, exam), of_program in zip(chunk, outcomes, strict=True)
            }
        finally:
            self._idle.put(worker)
        with self._lock:
            for key, verdict in verdicts.items():
                if verdict.status not in _NEVER_CACHED:
                    self._cache[key] = verdict
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return verdicts

    def _outcomes_until_failure(self, worker: Worker, exam: Exam, source: str) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for run in exam.runs(source, 0):
            outcomes += self._outcomes(worker, [run], [exam])
            if not reach_verdict(exam, outcomes).tests[len(outcomes) - 1]:
                break
        return outcomes

    def _outcomes(self, worker: Worker, runs: list[Run], exams: list[Exam]) -> list[Outcome]:
        """Return the outcome of each run; after the death of a server, a new one repeats the run that it was in."""
        outcomes: list[Outcome] = []
        attempts = 0
        while True:
            try:
                outcomes += worker.execute(runs[len(outcomes) :])
                _refuse_broken(outcomes)
                return outcomes
            except ServerDied as error:
                if self._closed:
                    raise JudgeError(_CLOSED) from None
                attempts = 1 if error.outcomes else attempts + 1
                outcomes += error.outcomes
                if attempts == _MAX_ATTEMPTS:
                    task = exams[runs[len(outcomes)].submission].task
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
                exam = prepare_exam(task, self.limits, self._stop_early)
                self._exams[id(task)] = exam  # the exam keeps the task alive, so no other task gets its id
                if len(self._exams) > _MAX_EXAMS:
                    self._exams.popitem(last=False)
            return exam


def _end_workers(workers: Sequence[Worker], pid: int) -> None:
    """End the workers of a judge; in a process forked from the judge's they are not ours to end."""
    if os.getpid() == pid:
        for worker in workers:
            worker.close()


def _refuse_broken(outcomes: Iterable[Outcome]) -> None:
    """Raise `JudgeError` for an outcome that says nothing about the program, because the machine is broken."""
    for outcome in outcomes:
        if outcome.tests is not None:
            _refuse_broken([outcome.tests])
        if outcome.ended == "broken":
            reason = "; ".join(outcome.reports) or "its process died at once, is this machine out of memory?"
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
