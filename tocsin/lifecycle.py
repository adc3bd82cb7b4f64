"""The life of a group, and of a failed job: one table each of who may go where, and what deserves a ring."""

from __future__ import annotations

from enum import StrEnum

from tocsin.failures import TocsinError


class Status(StrEnum):
    """Where a group stands."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    MUTED = "muted"
    IGNORED = "ignored"


class Trigger(StrEnum):
    """What happens to a group: an error arrives, a mute runs out, or a person acts."""

    ERROR = "error"
    EXPIRE = "expire"
    RESOLVE = "resolve"
    REOPEN = "reopen"
    ACKNOWLEDGE = "acknowledge"
    MUTE = "mute"
    IGNORE = "ignore"


class Reason(StrEnum):
    """Why a group deserves attention."""

    NEW = "new"
    REGRESSED = "regressed"
    UNMUTED = "unmuted"


class JobStatus(StrEnum):
    """Where a job stands that failed after its retries."""

    FAILED = "failed"
    RUNNING = "running"  # somebody has it run again
    DONE = "done"
    DISCARDED = "discarded"


class JobTrigger(StrEnum):
    """What a person does with a failed job."""

    RETRY = "retry"
    DONE = "done"
    DISCARD = "discard"


class IllegalTransition(TocsinError):
    """A group, or a job, cannot take that trigger in its status; has ``status`` and ``trigger``."""

    def __init__(self, status: Status | JobStatus | None, trigger: Trigger | JobTrigger) -> None:
        of = "job" if isinstance(trigger, JobTrigger) else "group"
        super().__init__(f"a {of} that is {status} cannot take {trigger}")
        self.status = status
        self.trigger = trigger


_OPEN, _ACKNOWLEDGED, _RESOLVED, _MUTED, _IGNORED = Status

_NEXT: dict[tuple[Status | None, Trigger], tuple[Status, Reason | None]] = {
    (None, Trigger.ERROR): (_OPEN, Reason.NEW),
    (_OPEN, Trigger.ERROR): (_OPEN, None),
    (_ACKNOWLEDGED, Trigger.ERROR): (_ACKNOWLEDGED, None),
    (_RESOLVED, Trigger.ERROR): (_OPEN, Reason.REGRESSED),
    (_MUTED, Trigger.ERROR): (_MUTED, None),
    (_IGNORED, Trigger.ERROR): (_IGNORED, None),
    #
    (_MUTED, Trigger.EXPIRE): (_OPEN, Reason.UNMUTED),
    #
    (_OPEN, Trigger.RESOLVE): (_RESOLVED, None),
    (_ACKNOWLEDGED, Trigger.RESOLVE): (_RESOLVED, None),
    (_RESOLVED, Trigger.RESOLVE): (_RESOLVED, None),
    (_MUTED, Trigger.RESOLVE): (_RESOLVED, None),
    (_IGNORED, Trigger.RESOLVE): (_RESOLVED, None),
    #
    (_OPEN, Trigger.REOPEN): (_OPEN, None),
    (_ACKNOWLEDGED, Trigger.REOPEN): (_OPEN, None),
    (_RESOLVED, Trigger.REOPEN): (_OPEN, None),
    (_MUTED, Trigger.REOPEN): (_OPEN, None),
    (_IGNORED, Trigger.REOPEN): (_OPEN, None),
    #
    (_OPEN, Trigger.ACKNOWLEDGE): (_ACKNOWLEDGED, None),
    (_ACKNOWLEDGED, Trigger.ACKNOWLEDGE): (_ACKNOWLEDGED, None),
    (_MUTED, Trigger.ACKNOWLEDGE): (_ACKNOWLEDGED, None),
    #
    (_OPEN, Trigger.MUTE): (_MUTED, None),
    (_ACKNOWLEDGED, Trigger.MUTE): (_MUTED, None),
    (_MUTED, Trigger.MUTE): (_MUTED, None),
    (_IGNORED, Trigger.MUTE): (_MUTED, None),
    #
    (_OPEN, Trigger.IGNORE): (_IGNORED, None),
    (_ACKNOWLEDGED, Trigger.IGNORE): (_IGNORED, None),
    (_RESOLVED, Trigger.IGNORE): (_IGNORED, None),
    (_MUTED, Trigger.IGNORE): (_IGNORED, None),
    (_IGNORED, Trigger.IGNORE): (_IGNORED, None),
}


def advance(status: Status | None, trigger: Trigger) -> tuple[Status, Reason | None]:
    """
    The status after a trigger, and the reason to ring, if there is one.

    Args:
        status: None for a group that does not exist yet.

    Raises:
        IllegalTransition: the table has no such cell; a person's wish that makes no sense, such as
            acknowledging what is resolved.
    """
    try:
        return _NEXT[status, trigger]
    except KeyError:
        raise IllegalTransition(status, trigger) from None


_NEXT_OF_JOB: dict[tuple[JobStatus, JobTrigger], JobStatus] = {
    (JobStatus.FAILED, JobTrigger.RETRY): JobStatus.RUNNING,
    #
    (JobStatus.FAILED, JobTrigger.DONE): JobStatus.DONE,
    (JobStatus.RUNNING, JobTrigger.DONE): JobStatus.DONE,
    (JobStatus.DONE, JobTrigger.DONE): JobStatus.DONE,
    #
    (JobStatus.FAILED, JobTrigger.DISCARD): JobStatus.DISCARDED,
    (JobStatus.RUNNING, JobTrigger.DISCARD): JobStatus.DISCARDED,
    (JobStatus.DISCARDED, JobTrigger.DISCARD): JobStatus.DISCARDED,
}


def advance_job(status: JobStatus, trigger: JobTrigger) -> JobStatus:
    """The status of a job after a trigger; raises `IllegalTransition` for what makes no sense."""
    try:
        return _NEXT_OF_JOB[status, trigger]
    except KeyError:
        raise IllegalTransition(status, trigger) from None
