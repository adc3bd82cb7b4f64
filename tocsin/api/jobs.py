"""Failed jobs in the API: looked at, done with by hand, discarded; never run, which is for who has the code."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tocsin.api.calls import Call, Caller, House, Parameter, Right, answer
from tocsin.api.inputs import Inputs
from tocsin.failures import NotFound
from tocsin.lifecycle import JobStatus, JobTrigger
from tocsin.store import jobs, queries, shapes

BASE: Final = "/api/debug/jobs"

_ALL = "all"
_STATUSES = (*JobStatus, _ALL)
_MOST_DIGITS = 20


async def list_jobs(request: Request, house: House) -> Response:
    """Those that wait for a person, unless a status is named."""
    given = Inputs(request.query_params)
    status = given.one_of("status", _STATUSES)
    statuses = jobs.WAITING if status is None else tuple(JobStatus) if status == _ALL else (JobStatus(status),)
    found, following = await house.store.read(
        jobs.list_jobs,
        statuses=statuses,
        service=given.text("service"),
        environment=given.text("environment"),
        q=given.text("q"),
        limit=given.whole("limit", 1, queries.MAX_LIMIT) or 50,
        before=given.text("before"),
    )
    return answer(shapes.job_list(found, following))


async def get_job(request: Request, house: House) -> Response:
    return answer(await house.store.read(shapes.whole_job, await _number_in(request, house)))


def _action(trigger: JobTrigger) -> Callable[[Request, House], Awaitable[Response]]:
    async def run(request: Request, house: House) -> Response:
        caller = request.state.caller
        assert isinstance(caller, Caller)
        number = await _number_in(request, house)
        acted = await house.store.write(jobs.act, number, trigger, by=caller.name, via=caller.via)
        return answer(shapes.acted_on_job(acted))

    return run


async def retry_job(request: Request, house: House) -> Response:
    """
    Where to do it. A server runs nothing that a row names.

    Whoever may send errors could write such a row; and the code, its environment and its secrets are elsewhere.
    """
    number = await _number_in(request, house)
    job = await house.store.read(jobs.by_number, number)
    folder = job.folder or f"the folder of {job.service}"
    raise HTTPException(
        409, f"a server runs no job: run `tocsin jobs retry {number}` in {folder}, with that service's environment"
    )


async def _number_in(request: Request, house: House) -> int:
    """The number in the path, or that of the id there; what is neither names no job."""
    name = request.path_params["n"]
    # Python refuses to read a number of thousands of digits, be they zeros.
    if re.fullmatch(rf"[0-9]{{1,{_MOST_DIGITS}}}", name, re.ASCII):
        return int(name)
    try:
        return await house.store.read(jobs.number_of, name)
    except NotFound:
        raise HTTPException(404, f"there is no job {name[:40]}") from None


# The table

_TEXT = {"type": "string"}
_JOB = {"$ref": "#/components/schemas/Job"}
_COUNT = {"type": "integer", "minimum": 0}
_SUCCESS: dict[str, Any] = {"success": {"const": True}}
_NUMBER = Parameter(name="n", about="The number of a job, such as 7, or its id.", schema=_TEXT)
_NO_SUCH = {404: "There is none."}


def _act_on_job(trigger: JobTrigger, about: str) -> Call:
    return Call(
        method="POST",
        path=f"{BASE}/{{n}}/{trigger}",
        right=Right.FULL,
        run=_action(trigger),
        about=about,
        takes=(_NUMBER,),
        gives=_SUCCESS | {"message": _TEXT, "job": _JOB},
        also=_NO_SUCH | {409: "A job in this status cannot take that."},
    )


CALLS = (
    Call(
        method="GET",
        path=BASE,
        right=Right.READ,
        run=list_jobs,
        about="Jobs that failed after their retries, the last failed first.",
        takes=(
            Parameter(
                name="limit",
                about="How many at most.",
                schema={"type": "integer", "minimum": 1, "maximum": queries.MAX_LIMIT, "default": 50},
            ),
            Parameter(
                name="status",
                about="Only this status; without it those that wait for a person (failed, running).",
                schema=_TEXT | {"enum": list(_STATUSES)},
            ),
            Parameter(name="service", about="Only this service."),
            Parameter(name="environment", about="Only this environment."),
            Parameter(name="q", about="Text in function, exception type or message."),
            Parameter(name="before", about="The value of `next` of the page before."),
        ),
        gives=_SUCCESS
        | {
            "count": _COUNT,
            "jobs": {"type": "array", "items": _JOB},
            "next": {"anyOf": [_TEXT, {"type": "null"}]},
        },
    ),
    Call(
        method="GET",
        path=f"{BASE}/{{n}}",
        right=Right.READ,
        run=get_job,
        about="One job with its arguments and tries, and what people did to it.",
        takes=(_NUMBER,),
        gives=_SUCCESS | {"job": _JOB, "history": {"type": "array", "items": {"$ref": "#/components/schemas/Act"}}},
        also=_NO_SUCH,
    ),
    _act_on_job(JobTrigger.DONE, "Say that it was done, by hand or otherwise."),
    _act_on_job(JobTrigger.DISCARD, "Say that nobody will do it any more."),
    Call(
        method="POST",
        path=f"{BASE}/{{n}}/{JobTrigger.RETRY}",
        right=Right.FULL,
        run=retry_job,
        about="Where to run it again: a server runs no code that a row names.",
        takes=(_NUMBER,),
        also=_NO_SUCH | {409: "Always; the text names the command and the folder."},
    ),
)
