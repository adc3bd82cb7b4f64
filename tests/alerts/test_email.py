"""Mail as a real mail server receives it: over TLS, once a reader, threaded, and with nothing foreign in charge."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes
from email.policy import SMTP as WIRE
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pytest

from tests.alerts.conftest import SHORT
from tests.alerts.samples import NOW, group, plain_settings, seen, subject
from tests.conftest import ErrorFactory
from tests.postgres import missing_part
from tests.standin.smtp import PASSWORD, USER, Authority, MailServer
from tests.waiting import aeventually
from tocsin import checks, clock
from tocsin.alerts import letter, messages
from tocsin.alerts.channels import DeliveryError, Message, Refused, Unacceptable, Unreachable, scrubbed
from tocsin.alerts.email import Email, compose, may_be_plain, sender_of
from tocsin.alerts.scheduler import channels_of, running, send_test
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store import Store, alerts, groups
from tocsin.store.alerts import Subject

ANNA, BEN = "anna@shop.example", "ben@shop.example"

MAIL = {"email_to": (ANNA,), "public_url": "https://errors.shop.example"}

FAST = replace(SHORT, slow_retry_max_s=0.2, attempt_s=3.0, claim_s=5.0)


class Starter(Protocol):
    """Starts a mail server that runs until the test ends."""

    def __call__(self, *names: str, trusted: bool = True, tls: bool = True, **how: Any) -> MailServer: ...


@pytest.fixture
def mail_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    with ExitStack() as open_servers:

        def start(*names: str, trusted: bool = True, tls: bool = True, **how: Any) -> MailServer:
            authority = Authority(tmp_path)
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
            context = authority.context(*(names or ("localhost", "127.0.0.1"))) if tls else None
            return open_servers.enter_context(MailServer(context, **how))

        yield start


def settings_for(server: MailServer, **values: Any) -> Settings:
    return plain_settings(**{"smtp_url": server.url(), **MAIL, **values})


def message_of(about: Subject | None = None, **values: Any) -> Message:
    about = about or subject(group(), error=seen())
    return replace(messages.render(about, plain_settings(**values), NOW), key="delivery")


async def send(
    settings: Settings, message: Message | None = None, to: str = ANNA, timeout_s: float = 5.0
) -> str | None:
    return await Email(settings, timeout_s=timeout_s).send(to, message or message_of())


async def failure(settings: Settings, *, to: str = ANNA, timeout_s: float = 5.0) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await send(settings, to=to, timeout_s=timeout_s)
    return caught.value


# What arrives.


@pytest.mark.parametrize("is_tls", [False, True], ids=["STARTTLS", "TLS"])
async def test_an_alert_arrives_over_tls_with_a_log_in(mail_server: Starter, is_tls: bool) -> None:
    """Both ways to TLS; a password with signs in it is written quoted in the address."""
    server = mail_server(is_tls=is_tls, wants_login=True)

    await send(settings_for(server, smtp_url=server.url(user=quote(USER, safe=""), password=quote(PASSWORD, safe=""))))

    [mail] = server.mails
    assert mail.is_encrypted and mail.user == USER
    assert (mail.sender, mail.to) == (USER, [ANNA])
    assert mail.message["Subject"] == "[tocsin] HIGH shop #42 KeyError: 'phone'"
    assert mail.message["From"] == f"tocsin <{USER}>"
    assert mail.message["Auto-Submitted"] == "auto-generated"
    for form in ("plain", "html"):
        for part in ("KeyError", "phone", "shop/orders.py:42", "production", "v2", "/admin/debug/groups/42", ANNA):
            assert part in mail.part(form), (form, part)


async def test_a_server_within_the_machine_may_do_without_tls(mail_server: Starter) -> None:
    """As the mail server that a Debian installs."""
    server = mail_server(tls=False)

    await send(settings_for(server, smtp_url=server.url("127.0.0.1"), email_from="Tocsin <t@shop.example>"))

    [mail] = server.mails
    assert not mail.is_encrypted and mail.message["From"] == "Tocsin <t@shop.example>"


@pytest.mark.parametrize(
    ("peer", "has_password", "may"),
    [
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("127.0.0.1", True, False),
        ("192.168.1.7", False, False),
        ("fe80::1%eth0", False, False),
        ("8.8.8.8", False, False),
    ],
)
def test_only_this_machine_is_talked_to_without_tls_and_never_with_a_password(
    peer: str, has_password: bool, may: bool
) -> None:
    """Whatever the server is called: where the connection went to counts."""
    assert may_be_plain(peer, has_password=has_password) is may


async def test_no_password_goes_over_a_plain_connection(mail_server: Starter) -> None:
    """Also not to this machine: somebody may have taken STARTTLS out on the way."""
    server = mail_server(wants_login=True)
    server.offer_no_starttls()

    problem = await failure(settings_for(server, smtp_url=server.url(user="anna", password="s3cret")))

    assert isinstance(problem, Refused) and "offers no STARTTLS" in str(problem)
    assert server.steps("login") == []


@pytest.mark.parametrize("is_tls", [False, True], ids=["STARTTLS", "TLS"])
@pytest.mark.parametrize("fault", ["authority", "name"])
async def test_a_certificate_that_is_not_right_gets_no_mail(mail_server: Starter, is_tls: bool, fault: str) -> None:
    """Of an unknown authority, or of another name; it is tried again, since it may be mended there."""
    if fault == "authority":
        server = mail_server(is_tls=is_tls, trusted=False)
    else:
        server = mail_server("mail.example", is_tls=is_tls)

    problem = await failure(settings_for(server))

    assert isinstance(problem, Unreachable) and problem.is_slow and not problem.unclear
    assert f"the certificate of localhost:{server.port} is not trusted" in str(problem)
    assert ("Hostname mismatch" in str(problem)) is (fault == "name")
    assert server.mails == [] and server.steps("rcpt") == []


# What a server may answer.


async def test_a_refused_recipient_is_parked_and_the_others_get_theirs(
    mail_server: Starter, store: Store, put: Any, error: ErrorFactory
) -> None:
    """One target a reader: each has its own attempts and its own state, for all to see."""
    server = mail_server()
    server.refuse_recipient(ANNA)
    async with running(settings_for(server, email_to=(ANNA, BEN)), store, limits=FAST) as house:
        await put(error())
        await aeventually(lambda: server.mails)

        def reasons() -> dict[str, str | None]:
            return {one["target"]: one["parked_reason"] for one in house.state()["channels"]}

        await aeventually(lambda: reasons().get(ANNA) and BEN in reasons())
        assert "recipient refused: " in (reasons()[ANNA] or "") and "No such user here" in (reasons()[ANNA] or "")
        assert reasons()[BEN] is None
        [listed] = (await store.read(alerts.list_alerts))[0]
        states = {one.target: (one.state, one.log[0].outcome) for one in listed.deliveries}
        assert states == {ANNA: ("pending", "refused"), BEN: ("sent", "sent")}

        server.heal()
        await aeventually(lambda: len(server.mails) == 2)
    assert sorted(mail.to[0] for mail in server.mails) == [ANNA, BEN]


async def test_greylisting_means_later_with_growing_pauses(
    mail_server: Starter, store: Store, put: Any, error: ErrorFactory
) -> None:
    """The server wants to see whether we come back; the mail arrives once."""
    server = mail_server()
    server.greylist(3)
    limits = replace(FAST, retry_first_s=0.1, slow_retry_max_s=10)
    async with running(settings_for(server), store, limits=limits) as house:
        await put(error())
        await aeventually(
            lambda: [one for one in house.state()["channels"] if "Greylisted" in (one["last_error"] or "")]
        )
        await aeventually(lambda: server.mails)
        await aeventually(lambda: all(one["last_error"] is None for one in house.state()["channels"]))

    tries = server.steps("rcpt")
    pauses = [after - before for before, after in pairwise(tries)]
    assert len(server.mails) == 1 and len(pauses) == 3
    assert pauses[1] > 0.12 and pauses[2] > 0.24


async def test_a_lost_answer_repeats_the_mail_with_the_same_id(
    mail_server: Starter, store: Store, put: Any, error: ErrorFactory
) -> None:
    """Nobody here can know that it was taken; a reader's program sees that it is the same."""
    server = mail_server()
    server.drop_answers(1)
    async with running(settings_for(server), store, limits=FAST):
        await put(error())
        await aeventually(lambda: len(server.mails) == 2)

    first, second = (mail.message for mail in server.mails)
    assert first["Message-ID"] == second["Message-ID"]
    assert "may repeat" not in server.mails[0].part("plain")
    assert "may repeat" in server.mails[1].part("plain") and "may repeat" in server.mails[1].part("html")


@pytest.mark.parametrize(
    ("switch", "reply", "kind", "said"),
    [
        ("refuse_mail", "554 5.6.0 Looks like spam", Unacceptable, "mail refused: "),
        ("refuse_mail", "452 4.3.1 Disk full", Unreachable, "452 4.3.1 Disk full"),
        ("refuse_sender", "550 5.7.1 Not your address", Refused, "set TOCSIN_EMAIL_FROM"),
        ("refuse_sender", "530 5.7.0 Log in first", Refused, "user or password refused"),
        ("refuse_sender", "421 4.7.0 Too many connections", Unreachable, "421"),
    ],
)
async def test_what_a_server_refuses_is_told_apart(
    mail_server: Starter, switch: str, reply: str, kind: type[DeliveryError], said: str
) -> None:
    """5xx stays until somebody mends it, 4xx passes; and it is said in the server's words."""
    server = mail_server()
    getattr(server, switch)(reply)

    problem = await failure(settings_for(server))

    assert type(problem) is kind and said in str(problem) and reply[4:] in str(problem)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("535 5.7.8 Credentials invalid", Refused), ("454 4.7.0 Temporary failure", Unreachable)],
)
async def test_a_refused_log_in_says_so_without_the_password(
    mail_server: Starter, reply: str, kind: type[DeliveryError]
) -> None:
    """Whatever the server says back."""
    server = mail_server(wants_login=True)
    server.refuse_login(f"{reply} AHVzZXIAczNjcmV0LXBhc3M= s3cret-pass")

    problem = await failure(settings_for(server, smtp_url=server.url(user="user", password="s3cret-pass")))

    assert type(problem) is kind and ("user or password refused" in str(problem)) is (kind is Refused)
    assert "s3cret" not in str(problem) and "AHVzZXIAczNjcmV0LXBhc3M=" not in str(problem)


@pytest.mark.parametrize("before", range(180, 310, 10))
def test_a_secret_is_taken_out_before_a_text_is_cut(before: int) -> None:
    """Half of one would be too much."""
    settings = plain_settings(smtp_url="smtp://user:s3cret-pass@mail.example", **MAIL)

    assert "s3c" not in (said := scrubbed("x" * before + "s3cret-pass" + "y" * 500, settings)) and len(said) <= 300


async def test_a_server_that_never_answers_is_left_in_time(mail_server: Starter) -> None:
    """And nothing was on its way yet, so that nothing can repeat."""
    server = mail_server()
    server.tarpit()

    problem = await failure(settings_for(server), timeout_s=0.4)

    assert isinstance(problem, Unreachable) and not problem.unclear


async def test_a_server_that_is_away_or_no_mail_server_is_only_unreachable() -> None:
    """Nobody listens, or somebody who speaks something else."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        late = await failure(plain_settings(smtp_url=f"smtp://127.0.0.1:{port}", **MAIL), timeout_s=0.3)
        no_tls = await failure(plain_settings(smtp_url=f"smtps://127.0.0.1:{port}", **MAIL), timeout_s=0.3)
    away = await failure(plain_settings(smtp_url=f"smtp://127.0.0.1:{port}", **MAIL))

    assert [type(one) for one in (late, no_tls, away)] == [Unreachable] * 3
    assert "did not answer in time" in str(late) and "Connect call failed" in str(away)


# Which mails there are.


async def test_every_channel_that_is_set_up_gets_what_rings(
    mail_server: Starter, settings: Settings, telegram: Any, store: Store, put: Any, error: ErrorFactory
) -> None:
    """Chat and mail at once; and a mail is not written again for a count or for a resolve."""
    server = mail_server()
    both = replace(settings, smtp_url=server.url(), email_to=(ANNA, BEN))
    assert [channel.name for channel in channels_of(both)] == ["telegram", "email"]
    async with running(both, store, limits=FAST):
        await put(error(severity=Severity.CRITICAL))
        await aeventually(lambda: telegram.messages and len(server.mails) == 2)
        await put(error(severity=Severity.CRITICAL))
        await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna", via="api", now=clock.now())
        await aeventually(lambda: "resolved" in telegram.messages[0].text)
        assert await store.read(alerts.due_targets, ["email"]) == []

    assert len(server.mails) == 2
    [important] = {mail.message["Importance"] for mail in server.mails}
    assert important == "high"


async def test_who_joins_a_fold_is_told_by_another_mail(
    mail_server: Starter, store: Store, put: Any, error: ErrorFactory
) -> None:
    """A mail cannot be edited; no group is left unsaid."""
    server = mail_server()
    async with running(settings_for(server, fold_above=2), store, limits=replace(FAST, fold_mail_every_s=0.2)):
        await put(*(error(f"Error{number}") for number in range(4)))
        await aeventually(lambda: server.mails)
        await put(error("Late"))
        await aeventually(lambda: len(server.mails) == 2)

    first, second = server.mails
    assert "#5" not in first.part("plain") and "All: #1, #2, #3, #4, #5" in second.part("plain")
    assert second.message["In-Reply-To"] == first.message["Message-ID"] != second.message["Message-ID"]


def thread_of(about: Subject) -> tuple[str, str | None, str]:
    mail = compose(message_of(about), plain_settings(smtp_url="smtp://mail.shop.example", **MAIL), ANNA)
    assert mail["In-Reply-To"] == mail["References"]
    return mail["Message-ID"], mail["In-Reply-To"], mail["Subject"]


def test_what_is_back_answers_the_first_mail_about_it() -> None:
    """By id and by subject, since readers go by the one or by both; a fold and a test stand alone."""
    first, back, worse = (thread_of(subject(group(), reason=reason)) for reason in ("new", "regressed", "critical"))
    other = thread_of(subject(group(43)))
    fold = thread_of(subject(group(), group(43), reason="fold"))

    assert first[1] is None and back[1] == worse[1] == first[0]
    assert back[2] == f"Re: {first[2]}"
    assert len({first[0], back[0], worse[0], other[0], fold[0]}) == 5
    assert other[1] is fold[1] is None
    assert first[0].endswith("@mail.shop.example>")


def test_what_rings_as_new_long_after_does_not_take_an_id_that_is_known() -> None:
    """Some readers drop a mail whose id they have seen."""
    fresh = thread_of(subject(group()))
    stale = thread_of(subject(group(first_seen=NOW - timedelta(days=40))))

    assert stale[0] != fresh[0] and stale[1] == fresh[0]


def test_a_mail_says_how_things_stand_and_who_did_it() -> None:
    """In the team's language and zone."""
    about = subject(group(status=Status.RESOLVED), error=seen())
    written = letter.write(about, plain_settings(language="ru", timezone="Europe/Moscow"), NOW, to=ANNA)

    assert written.subject == "[tocsin] ВАЖНО shop #42 KeyError: 'phone'"
    assert "✅ решена" in written.text and "✅ решена" in written.html
    assert "2026-03-14 12:26:53 MSK" in written.text and "2026-03-14 12:26:53 MSK" in written.html


def test_a_subject_in_any_language_keeps_its_words_apart() -> None:
    """Wherever its lines end; readers show what they put together again."""
    chance = random.Random(3)
    words = ["Платёж", "не", "прошёл:", "ответа", "базы", "данных", "<b>", "amoCRM", "🔥", "https://x.example/p"]
    settings = plain_settings(smtp_url="smtp://mail.example", **MAIL)
    for _ in range(300):
        title = " ".join(chance.choices(words, k=chance.randint(1, 18)))
        raw = compose(message_of(subject(group(title=title))), settings, ANNA).as_bytes()
        head = raw.partition(b"\r\n\r\n")[0]

        assert message_from_bytes(raw, policy=WIRE)["Subject"] == letter.header(f"[tocsin] HIGH shop #42 {title}")
        assert max(map(len, head.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    ("values", "sender"),
    [
        ({"smtp_url": "smtp://x", "email_from": "Shop <a@shop.example>"}, ("Shop", "a@shop.example")),
        ({"smtp_url": "smtp://b%40shop.example:p@mail.example"}, ("tocsin", "b@shop.example")),
        ({"smtp_url": "smtp://apikey:p@mail.example"}, ("tocsin", "tocsin@mail.example")),
        ({"smtp_url": "smtps://mail.example:1465"}, ("tocsin", "tocsin@mail.example")),
    ],
)
def test_mails_come_from_what_is_set_or_can_be_known(values: dict[str, Any], sender: tuple[str, str]) -> None:
    assert sender_of(plain_settings(**values)) == sender


# What no text from outside can do.

_SEPARATORS = "\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_PAYLOADS = [
    "x\r\nBcc: mallory@evil.example",
    "x\nX-Evil: 1\n\n<script>alert(1)</script>",
    "=?utf-8?q?x=0D=0AX-Evil:_1?=",
    "=?utf-8?b?DQpYLUV2aWw6IDE=?=",
    "</div></td></table><script>alert(1)</script>",
    "<img src=http://evil.example/x.png onerror=alert(1)>",
    "\"><a href='javascript:alert(1)'>x</a>",
    "{{ 7 * 7 }}{% include 'x' %}{0.__class__}%n",
    "<style>*{display:none}</style><!-- -->",
    "\ud800 lone \u202e turned \x00 nul \x1b[31m",
    "..\r\n.\r\nMAIL FROM:<x@evil.example>\r\n",
    "Я" * 500,
    "😀" * 300,
    "a" * 5000,
    '"; DROP <b>&lt;b&gt;&amp;',
]

_HEADERS = {
    *("From", "To", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "List-Id"),
    *("X-Auto-Response-Suppress", "X-Tocsin-Reason", "X-Tocsin-Severity", "X-Tocsin-Group", "Importance"),
    *("MIME-Version", "Content-Type"),
}
_TAGS = {
    *("html", "head", "meta", "title", "body", "table", "tr", "td", "div", "span", "strong", "h1", "a", "br"),
}
_ATTRIBUTES = {
    *("lang", "style", "charset", "name", "content", "role", "width", "cellpadding", "cellspacing", "href", "rel"),
}
_VOID = {"meta", "br"}


class Strict(HTMLParser):
    """Fails on what is not balanced, or not one of the tags and attributes that our templates use."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.shown = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _TAGS and {name for name, _ in attrs} <= _ATTRIBUTES, (tag, attrs)
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def checked_html(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == [] and "url(" not in html and "@import" not in html
    return parser


def hostile(chance: random.Random) -> str:
    """Foreign text: payloads, separators and whatever else, in any order."""
    parts = [
        chance.choice(_PAYLOADS)
        if chance.random() < 0.6
        else "".join(chr(chance.choice((chance.randrange(0x300), chance.randrange(0x11000)))) for _ in range(20))
        for _ in range(chance.randrange(1, 5))
    ]
    return chance.choice(_SEPARATORS).join(parts)


def hostile_subject(chance: random.Random) -> Subject:
    def text() -> str:
        return hostile(chance)

    frames = [{"file": text(), "line": text(), "function": text(), "text": text(), "in_app": True}, {"x": [text()]}, 7]
    error = seen(
        message=text(), exception_type=text(), release=text(), trace_id=text(), context={"tocsin.frames": frames}
    )

    def one(number: int) -> Any:
        return group(
            number,
            title=text(),
            culprit=text(),
            service=text(),
            environment=text(),
            exception_type=text(),
            resolved_by=text(),
            severity=chance.choice(list(Severity)),
            status=chance.choice(list(Status)),
        )

    if chance.random() < 0.3:
        return subject(*(one(number) for number in range(1, 6)), reason="fold")
    return subject(one(42), error=error, reason=chance.choice(["new", "regressed", "critical"]))


# Each mail holds a dozen hostile texts or more.
@pytest.mark.parametrize("mails", [100, pytest.param(1000, marks=pytest.mark.gate)])
def test_hostile_texts_add_no_header_and_no_line(mails: int) -> None:
    """As bytes on their way to the server."""
    chance = random.Random(mails)
    settings = plain_settings(smtp_url="smtp://mail.example", trace_url="https://t.example/{trace_id}", **MAIL)
    for round_ in range(mails):
        about = hostile_subject(chance)
        raw = compose(message_of(about), replace(settings, language=chance.choice(["en", "ru"])), ANNA).as_bytes()

        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n")
        names = [line.partition(b":")[0].decode("ascii") for line in lines]
        assert set(names) <= _HEADERS and len(names) == len(set(names)), (round_, names)
        assert not set(head.decode("ascii")) & set("\v\f\x1c\x1d\x1e\x00"), round_
        assert max(map(len, raw.split(b"\r\n"))) <= 998 and b"\n" not in raw.replace(b"\r\n", b"")
        assert body.isascii()


@pytest.mark.parametrize("mails", [200, pytest.param(2000, marks=pytest.mark.gate)])
def test_hostile_texts_stay_text_in_the_page(mails: int) -> None:
    """Balanced, with our tags alone, and no link that leads elsewhere."""
    chance = random.Random(mails)
    settings = plain_settings(trace_url="https://t.example/{trace_id}", **MAIL)
    for _ in range(mails):
        written = letter.write(hostile_subject(chance), settings, NOW, to=ANNA)
        parsed = checked_html(written.html)

        assert all(link.startswith(("https://errors.shop.example/", "https://t.example/")) for link in parsed.links)
        assert len(written.subject.splitlines()) == 1 and len(written.subject) <= 200
        assert "\x00" not in written.html and "\x1b" not in written.text


@pytest.mark.parametrize("payload", _PAYLOADS)
async def test_hostile_texts_arrive_as_they_were_sent(mail_server: Starter, payload: str) -> None:
    """A real server sees one sender, one recipient and the headers of ours."""
    server = mail_server()
    about = subject(group(title=payload, service=payload), error=seen(message=payload))

    await send(settings_for(server), message_of(about))

    [mail] = server.mails
    assert (mail.to, set(mail.message.keys()) <= _HEADERS) == ([ANNA], True)
    assert "Bcc" not in mail.message and "X-Evil" not in mail.message
    checked_html(mail.part("html"))


# What a reader's eyes see.


def test_a_mail_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    """A browser that opens it asks nobody for anything."""
    browser = shutil.which("chromium")
    if browser is None:
        missing_part("Chromium")
    assert browser is not None
    asked: list[str] = []

    class Listening(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    with ThreadingHTTPServer(("127.0.0.1", 0), Listening) as elsewhere:
        thread = threading.Thread(target=elsewhere.serve_forever, daemon=True)
        thread.start()
        there = f"http://127.0.0.1:{elsewhere.server_port}"
        evil = f'<img src="{there}/img"><script src="{there}/js"></script><style>@import "{there}/css"</style>'
        about = subject(group(title=evil, culprit=evil, service=evil), error=seen(message=evil, exception_type=evil))
        page = tmp_path / "mail.html"
        page.write_text(letter.write(about, plain_settings(**MAIL), NOW, to=ANNA).html)
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser", "--dump-dom"]
        done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, timeout=60, check=True)
        elsewhere.shutdown()
        thread.join()

    assert "HIGH" in done.stdout.decode()
    assert asked == []


# What people type.


async def test_a_test_alert_goes_by_mail_too(mail_server: Starter, store: Store) -> None:
    """To each reader, with what went wrong for whom."""
    server = mail_server()
    server.refuse_recipient(BEN)

    results = await send_test(settings_for(server, email_to=(ANNA, BEN)), store)

    assert [(channel, target, problem is None) for channel, target, problem in results] == [
        ("email", ANNA, True),
        ("email", BEN, False),
    ]
    assert server.mails[0].message["Subject"] == "[tocsin] test"


def test_check_logs_in_and_sends_nothing(mail_server: Starter) -> None:
    """And says from whom to whom mails will go, or how to mend it."""
    server = mail_server(wants_login=True)
    right = settings_for(server, smtp_url=server.url(user=quote(USER, safe=""), password=quote(PASSWORD, safe="")))

    [good] = checks.check_email(right)
    [bad] = checks.check_email(replace(right, smtp_url=server.url(user="anna", password="wrong")))
    [off] = checks.check_email(plain_settings())

    assert (good.state, bad.state, off.state) == ("ok", "FAIL", "off")
    assert "over TLS" in good.what and f"{USER} writes to {ANNA}" in good.what
    assert "user or password refused" in bad.what and "wrong" not in bad.what
    assert server.mails == [] and server.steps("rcpt") == []


def test_reading_mail_by_the_loop_leaves_no_task_behind(mail_server: Starter) -> None:
    """Each mail has a connection of its own, and it is closed."""
    server = mail_server()

    async def several() -> int:
        await asyncio.gather(*(send(settings_for(server)) for _ in range(3)))
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(several()) == 1
