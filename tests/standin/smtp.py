"""
A real mail server on loopback, by aiosmtpd, with certificates that a test makes, and with bad manners on demand.

By hand: ``python -m tests.standin.smtp --port 2525`` prints what it receives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from pathlib import Path
from typing import Any, Self

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

USER, PASSWORD = "alerts@shop.example", "s3cret/pass word"


@dataclass(slots=True)
class Mail:
    """A mail that was taken."""

    sender: str
    to: list[str]
    raw: bytes
    at: float
    is_encrypted: bool
    user: str | None

    @property
    def message(self) -> EmailMessage:
        parsed = email.message_from_bytes(self.raw, policy=WIRE)
        assert isinstance(parsed, EmailMessage)
        return parsed

    def part(self, subtype: str) -> str:
        """The text of one form of the mail: plain or html."""
        body = self.message.get_body((subtype,))
        assert isinstance(body, EmailMessage)
        text: str = body.get_content()
        return text


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.path = folder / "authority.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def context(self, *names: str) -> ssl.SSLContext:
        """What a server with these names speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        return context


class MailServer:
    """
    The server, in a thread of its own.

    Args:
        context: certificate and key; None for a server without TLS.
        is_tls: TLS from the first byte instead of STARTTLS.
        wants_login: takes mail only from `USER` with `PASSWORD`.
    """

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        *,
        is_tls: bool = False,
        wants_login: bool = False,
        port: int = 0,
        on_mail: Callable[[Mail], None] = lambda mail: None,
    ) -> None:
        self._context = context
        self._is_tls = is_tls
        self._wants_login = wants_login
        self._on_mail = on_mail
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mail-server")
        self._changed = threading.Lock()
        self._mails: list[Mail] = []
        self._switches: dict[str, Any] = {}
        self.port = port
        self.log: list[tuple[float, str]] = []  # each step of a client, and when

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await self._loop.create_server(
            self._connection, "127.0.0.1", self.port, ssl=self._context if self._is_tls else None
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connection(self) -> SMTP:
        self.log.append((time.monotonic(), "connect"))
        return SMTP(
            self,
            hostname="mail.example",
            ident="stand-in",
            tls_context=self._context if not self._is_tls and not self._switches.get("no_starttls") else None,
            require_starttls=self._context is not None and not self._is_tls and not self._switches.get("no_starttls"),
            auth_require_tls=False,  # it does not know of TLS from the first byte
            authenticator=self._authenticate,
            loop=self._loop,
        )

    # What it was told.

    def url(self, host: str = "localhost", *, user: str | None = None, password: str = "") -> str:
        """As `TOCSIN_SMTP_URL`; user and password as they are quoted there."""
        scheme = "smtps" if self._is_tls else "smtp"
        return f"{scheme}://{f'{user}:{password}@' if user else ''}{host}:{self.port}"

    @property
    def mails(self) -> list[Mail]:
        with self._changed:
            return list(self._mails)

    def steps(self, name: str) -> list[float]:
        """When clients came to a step: connect, rcpt, data, login."""
        return [at for at, step in self.log if step == name]

    # How it misbehaves. Each switch holds until it is used up, or until `heal`.

    def greylist(self, times: int) -> None:
        """Answer 451 to the next recipients."""
        self._switches["greylist"] = times

    def refuse_recipient(self, address: str, reply: str = "550 5.1.1 No such user here") -> None:
        self._switches.setdefault("recipients", {})[address] = reply

    def refuse_sender(self, reply: str = "550 5.7.1 Not your address") -> None:
        self._switches["sender"] = reply

    def refuse_mail(self, reply: str = "554 5.6.0 Looks like spam") -> None:
        self._switches["data"] = reply

    def refuse_login(self, reply: str = "535 5.7.8 Authentication credentials invalid") -> None:
        self._switches["login"] = reply

    def tarpit(self) -> None:
        """Never answer a recipient."""
        self._switches["tarpit"] = True

    def drop_answers(self, times: int) -> None:
        """Take the next mails, then cut the connection instead of saying so."""
        self._switches["drop"] = times

    def offer_no_starttls(self) -> None:
        self._switches["no_starttls"] = True

    def heal(self) -> None:
        self._switches = {}

    def _take(self, name: str) -> bool:
        left = self._switches.get(name, 0)
        if left:
            self._switches[name] = left - 1
        return bool(left)

    # The steps of a client, called by aiosmtpd.

    def _authenticate(self, server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.log.append((time.monotonic(), "login"))
        if reply := self._switches.get("login"):
            return AuthResult(success=False, handled=False, message=reply)
        is_right = isinstance(data, LoginPassword) and data == LoginPassword(USER.encode(), PASSWORD.encode())
        return AuthResult(success=is_right, handled=False, auth_data=USER if is_right else None)

    async def handle_MAIL(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if reply := self._switches.get("sender"):
            return str(reply)
        if self._wants_login and not session.authenticated:
            return "530 5.7.0 Authentication required"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        self.log.append((time.monotonic(), "rcpt"))
        if self._switches.get("tarpit"):
            await self._stopped.wait()
        if reply := self._switches.get("recipients", {}).get(address):
            return str(reply)
        if self._take("greylist"):
            return "451 4.7.1 Greylisted, come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        self.log.append((time.monotonic(), "data"))
        if reply := self._switches.get("data"):
            return str(reply)
        mail = Mail(
            sender=envelope.mail_from,
            to=list(envelope.rcpt_tos),
            raw=envelope.content,
            at=time.monotonic(),
            is_encrypted=session.ssl is not None or self._is_tls,
            user=session.auth_data if session.authenticated else None,
        )
        with self._changed:
            self._mails.append(mail)
        self._on_mail(mail)
        if self._take("drop"):
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
            await asyncio.sleep(3600)  # until the server stops: there is nobody left to answer
        return "250 OK"


def main() -> None:
    parser = argparse.ArgumentParser(description="A mail server on loopback that prints what it receives.")
    parser.add_argument("--port", type=int, default=2525)
    arguments = parser.parse_args()
    with MailServer(port=arguments.port, on_mail=lambda mail: print(mail.raw.decode("utf-8", "replace"), flush=True)):
        print(f"TOCSIN_SMTP_URL=smtp://127.0.0.1:{arguments.port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
