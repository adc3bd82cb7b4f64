"""What is stored, looked at and acted on by way of a server's API, where only `TOCSIN_ENDPOINT` is set."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

from tocsin.failures import BadInput, NotFound, TocsinError
from tocsin.lifecycle import IllegalTransition, JobStatus, JobTrigger, Trigger, advance_job
from tocsin.settings import Settings
from tocsin.text import clean, one_line
from tocsin.wire import Answer, Unanswered, Wire

Shape = dict[str, Any]

BASE: Final = "/api/debug"
_WITHIN_S = 30.0  # the server itself gives up after 20
_MOST_BYTES = 128 * 2**20


def is_meant(settings: Settings) -> bool:
    """Whether a server is named, and no database."""
    return settings.endpoint is not None and settings.database_url == Settings().database_url


class Remote:
    """
    The server that the settings name, as `tocsin.local.Local` is a database: the same calls, the same shapes.

    Times stay in ISO 8601, as the server writes them.

    Raises (every call):
        TocsinError: nobody is there, it is no tocsin, or it refuses the token; the text says which, and what to do.
        BadInput: a value that the server does not take.
        NotFound: the server has no such thing.
    """

    def __init__(self, settings: Settings, *, within_s: float = _WITHIN_S) -> None:
        self._within_s = within_s
        headers = {"Accept": "application/json", "User-Agent": "tocsin"}
        if token := settings.token or settings.read_token:
            headers["Authorization"] = f"Bearer {token}"
        self._has_token = token is not None
        self._wire = Wire(settings.endpoint or "", headers=headers, max_bytes=_MOST_BYTES)

    def errors(self, **filters: Any) -> Shape:
        """A page of errors; filters as in the API."""
        return self._get("/errors", **filters)

    def groups(self, **filters: Any) -> Shape:
        """A page of groups."""
        return self._get("/groups", **filters)

    def group(self, name: str) -> Shape:
        """A group by its number, or by the id of one of its errors."""
        if not re.fullmatch("[0-9]{1,9}", name):
            number = self._get(f"/errors/{quote(name, safe='')}")["error"]["group"]
            if number is None:
                raise NotFound(f"group of the error {name} yet")
            name = str(number)
        return self._get(f"/groups/{name}")

    def stats(self, hours: int, **filters: Any) -> Shape:
        """Statistics of the last hours."""
        return self._get("/errors/stats", hours=hours, **filters)

    def alerts(self, **filters: Any) -> Shape:
        """A page of alerts."""
        return self._get("/alerts", **filters)

    def act(self, number: int, trigger: Trigger, *, by: str, span: timedelta | None = None) -> Shape:
        """
        What became of an act on a group; a failure is a shape too.

        Args:
            by: not sent: who acts is whose token it is.
        """
        path = f"/groups/{number}/{trigger}"
        if span is not None:
            path += f"?for={round(span.total_seconds())}s"
        answer = self._ask("POST", path)
        content = self._content(answer)
        if answer.status not in (200, 404, 409):
            raise self._failure(answer, content)
        return content

    def jobs(self, **filters: Any) -> Shape:
        """A page of failed jobs."""
        return self._get("/jobs", **filters)

    def job(self, name: str) -> Shape:
        """A job by its number or its id."""
        return self._get(f"/jobs/{quote(name, safe='')}")

    def act_on_job(self, number: int, trigger: JobTrigger, *, by: str) -> Shape:
        """What became of an act on a job; a failure is a shape too."""
        answer = self._ask("POST", f"/jobs/{number}/{trigger}")
        content = self._content(answer)
        if answer.status not in (200, 404, 409):
            raise self._failure(answer, content)
        return content

    def begin_retry(self, number: int, *, by: str, runner: str) -> Shape:
        """
        A job that may be run; a server does not note who runs it.

        Raises:
            IllegalTransition: it is done or discarded, or somebody who is at its database runs it.
        """
        job: Shape = self._get(f"/jobs/{number}")["job"]
        status = JobStatus(job["status"])
        if status is JobStatus.RUNNING:
            raise IllegalTransition(status, JobTrigger.RETRY)
        advance_job(status, JobTrigger.RETRY)
        return job

    def keep_retry(self, number: int, *, by: str, runner: str) -> None:
        """Nothing: nobody was told that it is being run."""

    def end_retry(self, number: int, *, by: str, runner: str, is_done: bool, outcome: str) -> Shape:
        """Say that it is done; what failed again stays as it was."""
        if not is_done:
            job: Shape = self._get(f"/jobs/{number}")["job"]
            return job
        said = self.act_on_job(number, JobTrigger.DONE, by=by)
        if not said["success"]:
            raise TocsinError(str(said["error"]))
        done: Shape = said["job"]
        return done

    def beats(self, environment: str | None = None) -> Shape:
        """The beats of cron jobs, with how each stands."""
        return self._get("/beats", environment=environment)

    def forget_beat(self, name: str, environment: str | None, *, by: str) -> Shape:
        """Remove a beat; who does is whose token it is."""
        where = f"?{urlencode({'environment': environment})}" if environment else ""
        answer = self._ask("DELETE", f"/beats/{quote(name, safe='')}{where}")
        content = self._content(answer)
        if answer.status != 200:
            raise self._failure(answer, content)
        return content

    def health(self) -> Shape:
        """How the server stands; also when its database does not."""
        answer = self._ask("GET", "/health")
        content = self._content(answer, known_by="status")
        if answer.status not in (200, 503):
            raise self._failure(answer, content)
        return content

    def close(self) -> None:
        """Let go of the connection."""
        self._wire.close()

    def _get(self, path: str, **query: Any) -> Shape:
        given = {name: _as_text(value) for name, value in query.items() if value is not None}
        answer = self._ask("GET", f"{path}?{urlencode(given)}" if given else path)
        content = self._content(answer)
        if answer.status != 200:
            raise self._failure(answer, content)
        return content

    def _ask(self, method: str, path: str) -> Answer:
        body = b"" if method == "POST" else None
        try:
            return self._wire.request(method, BASE + path, body, within_s=self._within_s)
        except Unanswered as problem:
            raise TocsinError(f"the server does not answer: {problem}; TOCSIN_ENDPOINT names it") from None

    def _content(self, answer: Answer, known_by: str = "success") -> Shape:
        """The JSON of an answer; every one of tocsin's says whether it was a success."""
        try:
            content = json.loads(answer.body) if answer.is_json else None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or ("success" not in content and known_by not in content):
            where = f"{self._wire.address}{BASE}"
            raise TocsinError(f"this is no tocsin server: {where} answers {answer.status}; put TOCSIN_ENDPOINT right")
        return content

    def _failure(self, answer: Answer, content: Shape) -> TocsinError:
        said = one_line(clean(str(content.get("error") or ""), 500), 500)
        if answer.status in (401, 403):
            mend = "set TOCSIN_TOKEN to the server's (to look, its TOCSIN_READ_TOKEN will do)"
            held = "does not take this token for it" if self._has_token else "wants a token"
            return TocsinError(f"{self._wire.address} {held}: {said}; {mend}")
        field, colon, problem = said.partition(": ")
        if answer.status == 400 and colon:
            return BadInput(field, problem)
        if answer.status == 404 and said.startswith("there is no "):
            return NotFound(said.removeprefix("there is no "))
        return TocsinError(f"{self._wire.address} answers {answer.status}: {said}")


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
