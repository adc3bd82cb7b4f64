"""Heartbeats by HTTP: a line in a crontab with `curl`, a list, and what is abolished."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from tests.api.conftest import TOKENS, client_of, settings_with
from tests.beating import DAY, kept, nightly, put
from tests.waiting import aeventually
from tocsin import clock
from tocsin.api import create_app
from tocsin.exporter.database import Database
from tocsin.exporter.door import Door
from tocsin.exporter.drain import Drain
from tocsin.exporter.spool import Spool, read_segment
from tocsin.settings import Settings
from tocsin.store import Store, audit, beats, open_store

URL = "/api/debug/beats"


async def test_a_post_tells_that_a_job_has_run(client: httpx.AsyncClient, store: Store) -> None:
    """All in the address, as a crontab has it; a name may have spaces."""
    answer = await client.post(f"{URL}/nightly%20backup?every=1d&grace=2h&message=17%20files&service=shop")

    assert (answer.status_code, answer.json()) == (200, {"success": True, "message": "nightly backup is ok"})
    beat = await kept(store)
    assert (beat.name, beat.service, beat.environment, beat.message) == (
        "nightly backup",
        "shop",
        "production",
        "17 files",
    )
    assert (beat.every_s, beat.grace_s, beat.is_ok) == (86_400.0, 7200.0, True)


async def test_a_failed_run_says_so_without_secrets(client: httpx.AsyncClient, store: Store) -> None:
    message = "line 1%0Apassword=hunter22 " + "x" * 5000
    answer = await client.post(f"{URL}/nightly?every=1d&status=failed&environment=staging&message={message}")

    assert answer.json()["message"] == "nightly is failed"
    beat = await kept(store)
    assert (beat.is_ok, beat.environment) == (False, "staging")
    assert beat.message is not None
    assert beat.message.startswith("line 1\n")
    assert "hunter22" not in beat.message
    assert len(beat.message) < 2500


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("nightly", "every: nothing is known of nightly in production yet"),
        ("nightly?every=daily", "every: give a length of time"),
        ("nightly?every=1d&grace=x", "grace: give a length of time"),
        ("nightly?every=1d&status=bad", "status: give ok or failed"),
        ("%20?every=1d", "name: give 1 to 100 letters"),
        ("a%3Cb%3E?every=1d", "name: give 1 to 100 letters"),
        ("x" * 101 + "?every=1d", "name: give 1 to 100 letters"),
    ],
)
async def test_what_is_wrong_is_named(client: httpx.AsyncClient, store: Store, address: str, problem: str) -> None:
    """`curl -f` ends with an error then, which cron sends by mail."""
    answer = await client.post(f"{URL}/{address}")

    assert answer.status_code == 400
    assert answer.json()["error"].startswith(problem)
    assert await store.read(beats.list_beats) == []


async def test_who_may_send_errors_may_tell_beats(app: Starlette, stranger: httpx.AsyncClient, door: Door) -> None:
    async with client_of(app, token=TOKENS["ingest"]) as sender, client_of(app, token=TOKENS["read"]) as reader:
        assert (await sender.post(f"{URL}/nightly?every=1d")).status_code == 200
        assert (await reader.post(f"{URL}/nightly?every=1d")).status_code == 403
        assert (await stranger.post(f"{URL}/nightly?every=1d")).status_code == 401
        assert (await sender.get(URL)).status_code == 403
        assert (await reader.get(URL)).status_code == 200
        assert (await reader.delete(f"{URL}/nightly")).status_code == 403
        assert (await stranger.delete(f"{URL}/nightly")).status_code == 401


async def test_programs_of_this_machine_need_no_token_while_there_is_none(store: Store, door: Door) -> None:
    app = create_app(settings_with(ingest_token=None), store=store, door=door)
    async with client_of(app, host="http://127.0.0.1:4318", peer="127.0.0.1") as here:
        assert (await here.post(f"{URL}/nightly?every=1d")).status_code == 200
        from_a_page = await here.post(f"{URL}/nightly?every=1d", headers={"origin": "https://evil.example"})
        assert from_a_page.status_code == 403
    await app.state.house.finish(5)


async def test_reading_changes_nothing(client: httpx.AsyncClient) -> None:
    """A GET may be sent by whoever looks at a link."""
    assert (await client.get(f"{URL}/nightly?every=1d")).status_code == 405


async def test_mounted_in_an_application_it_takes_none(store: Store) -> None:
    async with client_of(create_app(settings_with(), store=store), token=TOKENS["full"]) as client:
        assert (await client.post(f"{URL}/nightly?every=1d")).status_code == 404


async def test_the_list_says_how_each_stands(client: httpx.AsyncClient, store: Store) -> None:
    old = clock.now() - 2 * DAY
    await put(store, nightly(), nightly(name="a", is_ok=False), nightly(name="b", timestamp=old, took_s=1.5))

    found = (await client.get(URL)).json()

    assert found["count"] == 3
    assert [(one["name"], one["state"]) for one in found["beats"]] == [
        ("a", "failed"),
        ("b", "missing"),
        ("nightly", "ok"),
    ]
    assert (
        found["beats"][1].items()
        >= {"every": "1d", "grace": "2h", "took_s": 1.5, "service": "shop", "group": None}.items()
    )
    assert found["beats"][1]["last_at"].endswith("Z")
    assert (await client.get(f"{URL}?environment=staging")).json()["beats"] == []


async def test_what_is_forgotten_is_gone(client: httpx.AsyncClient, store: Store) -> None:
    await put(store, nightly(), nightly(environment="staging"))

    assert (await client.delete(f"{URL}/nightly")).status_code == 400
    answer = await client.delete(f"{URL}/nightly?environment=staging")
    assert answer.json() == {"success": True, "message": "nightly in staging is forgotten"}
    assert (await client.delete(f"{URL}/hourly")).status_code == 404
    assert (await kept(store)).environment == "production"
    (entry,) = await store.read(audit.of_target, "beat nightly")
    assert (entry.actor, entry.via, entry.action) == ("token: full", "api", "forget")


async def test_while_the_database_is_away_a_beat_waits_in_the_spool(
    tmp_path: Path, spool: Spool, door: Door, database_url: str
) -> None:
    """The job is answered at once, and the row comes when the database is back."""
    away = open_store(f"sqlite:///{tmp_path}/none/none/none.db")
    (tmp_path / "none").write_text("a file where a folder should be")
    app = create_app(settings_with(), store=away, door=door)
    async with client_of(app, token=TOKENS["ingest"]) as sender:
        answer = await sender.post(f"{URL}/nightly?every=1d&environment=staging&service=shop")
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert "when the database is back" in answer.json()["message"]
    await app.state.house.finish(5)
    await away.close()

    lines = [line.content for path in spool.segments() for line in read_segment(path)]
    assert [line["kind"] for line in lines if line] == ["segment", "beat"]
    settings = Settings(database_url=database_url, spool_dir=str(tmp_path / "spool"))
    drain = Drain(settings, spool, tmp_path / "spool", sink=Database(settings, tmp_path / "spool"))
    drain.start()
    store = open_store(database_url)
    try:
        drain.wake()
        (beat,) = await aeventually(lambda: store.read(beats.list_beats))
    finally:
        drain.finish(5)
        await store.close()
    assert (beat.name, beat.environment, beat.service) == ("nightly", "staging", "shop")
    assert clock.now() - beat.last_at < timedelta(minutes=1)
