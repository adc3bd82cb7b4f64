"""
Jobs: what fails in a task of Celery or a job of RQ, once it is given up, and who was lost while working on one.

Both are hooked where they themselves come to know of a failure: in the process that ran the job, and in its
parent where that process was lost. While a job runs, which one it is stands with every error that happens in it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from tocsin.contained import contained
from tocsin.exporter.life import State
from tocsin.instrumentation import state
from tocsin.instrumentation.capture import Capture
from tocsin.instrumentation.context import current_facts
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.patches import Layer, Patches
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity

_UID: Final = "tocsin"
_MEANT: Final = "_tocsin_meant"
_OUTER: Final = "_tocsin_outer"
_patches = Patches()


def install() -> None:
    """Hook in, now or when Celery and RQ are imported; harmless when called twice."""
    for name, then in _PLACES.items():
        after_import(name, then)


def uninstall() -> None:
    """Put back what was found, where nobody has hooked in on top of us since."""
    _patches.uninstall()
    if (signals := sys.modules.get("celery.signals")) is not None:
        for name in _RECEIVERS:
            getattr(signals, name).disconnect(dispatch_uid=_UID)


def _how_it_ended(status: int) -> str:
    """Of a process: what `multiprocessing` calls its exit code, negative for a signal."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


# Celery


def _task_facts(task: Any, task_id: object, args: object, kwargs: object) -> dict[str, Any]:
    return {
        "celery.task_name": getattr(task, "name", None),
        "celery.task_id": task_id,
        "celery.args": args,
        "celery.kwargs": kwargs,
    }


def _task_begins(sender: Any = None, task_id: Any = None, args: Any = None, kwargs: Any = None, **_: Any) -> None:
    with contained("reading what Celery begins"):
        outer = current_facts.get()
        facts = _task_facts(sender, task_id, args, kwargs)
        request = sender.request
        if request.retries:
            facts["celery.retries"] = request.retries
        setattr(request, _OUTER, outer)
        current_facts.set({**(outer or {}), **facts})


def _task_ends(sender: Any = None, **_: Any) -> None:
    with contained("reading what Celery ends"):
        if hasattr(sender.request, _OUTER):
            current_facts.set(getattr(sender.request, _OUTER))


_timed_out: deque[object] = deque(maxlen=100)


def _task_fails(
    sender: Any = None, task_id: Any = None, exception: Any = None, args: Any = None, kwargs: Any = None, **_: Any
) -> None:
    """
    A task is given up; a retry, `Ignore` and `Reject` do not come here, or are no errors.

    Called in the process that ran it, or in its parent where that cannot tell any more.
    """
    capture = state.current
    if capture is None:
        return
    with contained("reading what Celery reports"):
        # Celery hands on a stand-in for what cannot be pickled; the exception itself is being handled just now.
        exc = sys.exc_info()[1] or exception
        expected = getattr(sender, "throws", None)
        if not isinstance(exc, BaseException) or (expected and isinstance(exc, expected)):
            return
        kind = type(exc).__name__
        if kind == "TimeLimitExceeded":  # it is told of twice, by two exceptions
            if task_id in _timed_out:
                return
            _timed_out.append(task_id)
        sighting = Sighting(exc, mechanism="celery", handled=False, place=getattr(sender, "name", None))
        if kind == "WorkerLostError":
            sighting.severity = Severity.CRITICAL
        if "celery.task_id" not in (current_facts.get() or {}):
            sighting.facts = _task_facts(sender, task_id, args, kwargs)
        capture.see(sighting)


_RECEIVERS: Final[Mapping[str, Callable[..., None]]] = {
    "task_prerun": _task_begins,
    "task_postrun": _task_ends,
    "task_failure": _task_fails,
    "task_internal_error": _task_fails,
}


def _hook_celery_signals(module: ModuleType) -> None:
    for name, receiver in _RECEIVERS.items():
        getattr(module, name).connect(receiver, weak=False, dispatch_uid=_UID)


def _joined(layer: Layer) -> Callable[..., Any]:
    """``_join_exited_workers`` of the pool: of one that was lost with its task Celery tells, of an idle one nobody."""

    def _join_exited_workers(self: Any, shutdown: bool = False) -> Any:
        lost: list[Any] = []
        if layer.is_on and not shutdown:
            with contained("looking for lost pool processes"):
                lost = _lost_idle(self)
        found = layer.before(self, shutdown)
        for worker in lost:
            with contained("telling of a lost pool process"):
                _note_lost(worker)
        return found

    return _join_exited_workers


def _lost_idle(pool: Any) -> list[Any]:
    """Those that a signal has ended, none of the pool's own; what leaves by an exit code, leaves in a task."""
    lost = [one for one in pool._pool if (one.exitcode or 0) < 0 and not _is_meant(one)]
    if not lost:
        return []
    busy = {pid for job in list(pool._cache.values()) if not job.ready() for pid in job.worker_pids()}
    return [one for one in lost if one.pid not in busy]


def _is_meant(worker: Any) -> bool:
    return getattr(worker, "_controlled_termination", False) or hasattr(worker, _MEANT)


def _ended(layer: Layer) -> Callable[..., Any]:
    """``_trywaitkill`` of the pool: it ends the process of a task that is past its time limit."""

    def _trywaitkill(self: Any, worker: Any) -> Any:
        setattr(worker, _MEANT, True)
        return layer.before(self, worker)

    return _trywaitkill


def _note_lost(worker: Any) -> None:
    if state.current is None:
        return
    text = f"a pool process of Celery was lost: {_how_it_ended(worker.exitcode)}"
    seen = Sighting(text, mechanism="celery", handled=False, severity=Severity.CRITICAL, place="celery pool")
    seen.category, seen.facts = "queue", {"celery.process": worker.name, "celery.pid": worker.pid}
    state.current.see(seen)


# RQ


def _job_facts(job: Any) -> dict[str, Any]:
    facts = {"rq.job_id": job.id, "rq.queue": job.origin}
    try:
        return {**facts, "rq.function": job.func_name, "rq.args": job.args, "rq.kwargs": job.kwargs}
    except Exception:  # what it was called with cannot be read, which may be why it failed
        return facts


def _performed(layer: Layer) -> Callable[..., Any]:
    """``perform_job``: in the work horse, or in the worker itself where that forks none."""

    def perform_job(self: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
        if not layer.is_on or state.current is None:
            return layer.before(self, job, *args, **kwargs)
        token = None
        with contained("reading what RQ begins"):
            token = current_facts.set({**(current_facts.get() or {}), **_job_facts(job)})
        try:
            return layer.before(self, job, *args, **kwargs)
        finally:
            if token is not None:
                current_facts.reset(token)

    return perform_job


def _worked(layer: Layer) -> Callable[..., Any]:
    """``main_work_horse``: also where the horse is a program of its own, its worker sees how it ends, and tells."""

    def main_work_horse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.is_on and isinstance(state.current, Capture):
            with contained("leaving a work horse to its worker"):
                state.current.spool.life.set_state(State.UNMARKED)
        return layer.before(self, *args, **kwargs)

    return main_work_horse


def _excepted(layer: Layer) -> Callable[..., Any]:
    """``handle_exception``: RQ logs the exception and asks its handlers; whether it tries again it decides later."""

    def handle_exception(self: Any, job: Any, *exc_info: Any) -> Any:
        if layer.is_on and state.current is not None:
            with contained("reading what RQ reports"):
                _note_job(job, exc_info[1])
        return layer.before(self, job, *exc_info)

    return handle_exception


def _note_job(job: Any, exc: object) -> None:
    if state.current is not None and isinstance(exc, BaseException) and not getattr(job, "retries_left", None):
        seen = Sighting(exc, mechanism="rq", handled=False)
        if "rq.job_id" not in (current_facts.get() or {}):  # tocsin was started by the job's own module
            seen.facts = _job_facts(job)
        state.current.see(seen)


def _retried(layer: Layer) -> Callable[..., Any]:
    """``handle_job_retry``: of a job that asks to be tried again by what it returns, perhaps once too often."""

    def handle_job_retry(self: Any, job: Any, queue: Any, retry: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.is_on:
            with contained("reading what RQ reports"):
                _note_given_up(job, retry)
        return layer.before(self, job, queue, retry, *args, **kwargs)

    return handle_job_retry


def _note_given_up(job: Any, retry: Any) -> None:
    if state.current is not None and job.number_of_retries and job.number_of_retries >= retry.max:
        retries = f"{job.number_of_retries} {'retry' if job.number_of_retries == 1 else 'retries'}"
        text = f"{job.func_name} was given up after {retries}"
        state.current.see(Sighting(text, mechanism="rq", handled=False, place=job.func_name))


def _killed(layer: Layer) -> Callable[..., Any]:
    """``handle_work_horse_killed``: in the worker, of a horse that has ended without a word about its job."""

    def handle_work_horse_killed(self: Any, job: Any, retpid: Any, ret_val: Any, rusage: Any) -> Any:
        if layer.is_on and state.current is not None:
            with contained("reading what RQ reports"):
                _note_killed(job, ret_val)
        return layer.before(self, job, retpid, ret_val, rusage)

    return handle_work_horse_killed


def _note_killed(job: Any, status: int | None) -> None:
    if state.current is None:
        return
    facts = _job_facts(job)
    function = facts.get("rq.function", job.id)
    how = "nobody knows how" if status is None else _how_it_ended(os.waitstatus_to_exitcode(status))
    text = f"the work horse of RQ was lost in {function}: {how}"
    seen = Sighting(text, mechanism="rq", handled=False, severity=Severity.CRITICAL, place=function)
    seen.category, seen.facts = "queue", facts
    state.current.see(seen)


def _patch_rq(module: ModuleType) -> None:
    kind = module.BaseWorker if hasattr(module, "BaseWorker") else module.Worker
    _patches.install(kind, "perform_job", _performed)
    _patches.install(kind, "main_work_horse", _worked)
    _patches.install(kind, "handle_exception", _excepted)
    _patches.install(kind, "handle_work_horse_killed", _killed)
    if hasattr(kind, "handle_job_retry"):
        _patches.install(kind, "handle_job_retry", _retried)


def _patch_pool(module: ModuleType) -> None:
    _patches.install(module.Pool, "_join_exited_workers", _joined)
    _patches.install(module.TimeoutHandler, "_trywaitkill", _ended)


_PLACES: Final[dict[str, Callable[[ModuleType], None]]] = {
    "celery.signals": _hook_celery_signals,
    "billiard.pool": _patch_pool,
    "rq.worker": _patch_rq,
}
