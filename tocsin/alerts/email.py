"""
E-mail: one mail an alert and reader, over TLS, by a server that the team names.

``smtp://`` begins plain and goes over to TLS (STARTTLS) before anything is said; ``smtps://`` is TLS from
the first byte. The server's certificate and name are checked (``SSL_CERT_FILE`` names another trust). A
server that offers no STARTTLS is refused, unless it answers from this very machine; and no password ever
goes over a connection that is not encrypted.

Mail readers bring together what belongs together by Message-ID and References. The first mail about a
group has an id that can be worked out from the group, so that later ones (it is back, it has become
critical) answer it; a further attempt at a mail has the same id, so that a repeat is known for one.

Source: RFC 5321 (replies), RFC 3207 (STARTTLS), RFC 8314 (ports), RFC 5322 section 3.6.4, RFC 3834.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

import aiosmtplib
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPDataError,
    SMTPException,
    SMTPRecipientRefused,
    SMTPResponseException,
    SMTPServerDisconnected,
)

from tocsin import clock
from tocsin.alerts import letter
from tocsin.alerts.channels import DeliveryError, Message, Refused, Unacceptable, Unreachable, scrubbed
from tocsin.alerts.rules import Reason
from tocsin.model import Severity
from tocsin.settings import Settings, is_mail_address, mail_sender
from tocsin.store.alerts import Subject
from tocsin.store.groups import Group

NAME = "email"

TIME_LIMIT_S = 15.0
"""For one mail; less than an attempt may take, so that it is known how far it came."""


class _Wire(EmailPolicy):
    """Mails as they go over the wire, with every space of the subject in its place."""

    def fold_binary(self, name: str, value: str) -> bytes:
        """
        A header in lines; a subject beyond ASCII is encoded whole.

        The standard folding encodes word by word, and loses a space where a line ends between two of them.
        """
        if name.lower() != "subject" or value.isascii():
            return super().fold_binary(name, value)
        words = Header(str(value), "utf-8", 75, header_name=name).encode(linesep=self.linesep)
        return f"{name}: {words}{self.linesep}".encode("ascii")


_WIRE = _Wire(linesep="\r\n")
_GOODBYE_S = 1.0
_FIRST_WITHIN = timedelta(days=7)
_DOMAIN_LIMIT = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The mail server that the settings name."""

    host: str
    port: int
    is_tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """As texts name it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def server_of(settings: Settings) -> Server:
    """The mail server; 587 for ``smtp://`` and 465 for ``smtps://`` unless a port is given."""
    parts = urlsplit(settings.smtp_url or "")
    is_tls = parts.scheme == "smtps"
    return Server(
        host=parts.hostname or "",
        port=parts.port or (465 if is_tls else 587),
        is_tls=is_tls,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def sender_of(settings: Settings) -> tuple[str, str]:
    """Name and address that mails come from: as set, else the server's user, else ``tocsin@`` its host."""
    if settings.email_from:
        name, address = mail_sender(settings.email_from)
        return name or "tocsin", address
    server = server_of(settings)
    if server.user and is_mail_address(server.user):
        return "tocsin", server.user
    for host in (server.host, socket.gethostname()):
        if not _is_ip(host) and host != "localhost" and is_mail_address(f"tocsin@{host}"):
            return "tocsin", f"tocsin@{host}"
    return "tocsin", "tocsin@localhost"


def compose(message: Message, settings: Settings, to: str, *, follows: bool = False) -> EmailMessage:
    """
    The whole mail for one reader.

    Args:
        follows: a fold's mail was sent, and more have joined since.
    """
    subject = message.subject
    if subject is None:
        raise ValueError("only an alert can be mailed")
    name, sender = sender_of(settings)
    domain = sender.rpartition("@")[2][-_DOMAIN_LIMIT:].lstrip(".-")
    written = letter.write(subject, settings, clock.now(), to=to)
    mail = EmailMessage(policy=_WIRE)
    mail["From"] = Address(name, addr_spec=sender)
    mail["To"] = Address(addr_spec=to)
    mail["Subject"] = letter.header(f"Re: {written.subject}") if follows else written.subject
    mail["Date"] = format_datetime(clock.now())
    own, first = _ids(subject, domain)
    if follows:
        own, first = f"<{own[1:].replace('@', f'-{len(subject.groups)}@')}", own
    mail["Message-ID"] = own
    if first is not None:
        mail["In-Reply-To"] = first
        mail["References"] = first
    mail["Auto-Submitted"] = "auto-generated"  # nobody is away on holiday for it
    mail["X-Auto-Response-Suppress"] = "All"
    mail["List-Id"] = f"<tocsin.{domain}>"
    mail["X-Tocsin-Reason"] = subject.alert.reason
    mail["X-Tocsin-Severity"] = subject.alert.severity
    if len(subject.groups) == 1:
        mail["X-Tocsin-Group"] = str(subject.groups[0].number)
    if subject.alert.severity == Severity.CRITICAL:
        mail["Importance"] = "high"
    mail.set_content(written.text, cte=_encoding(written.text))
    mail.add_alternative(written.html, subtype="html", cte=_encoding(written.html))
    return mail


def _encoding(text: str) -> str:
    """The shorter of the two ways in which every server passes a text on."""
    return "base64" if len(text.encode()) > len(text) * 1.2 else "quoted-printable"


def _ids(subject: Subject, domain: str) -> tuple[str, str | None]:
    """The mail's own id, and that of the mail which it answers."""
    alert = subject.alert
    own = f"<alert-{alert.id.replace('-', '')[:32]}@{domain}>"
    if alert.group_id is None or not subject.groups:
        return own, None
    group = subject.groups[0]
    first = _first_id(group, domain)
    if alert.reason != Reason.NEW:
        return own, first
    # A mail with an id that is known already is dropped by some readers. So what rings as new once more,
    # long after, since what was said of it is no longer kept, does not take the first one's.
    return (first, None) if alert.created_at - group.first_seen < _FIRST_WITHIN else (own, first)


def _first_id(group: Group, domain: str) -> str:
    digest = hashlib.sha256(f"{group.id} {group.number}".encode()).hexdigest()
    return f"<group-{group.number}-{digest[:16]}@{domain}>"


class Email:
    """The channel; each reader is a target of its own."""

    name = NAME

    def __init__(self, settings: Settings, *, timeout_s: float = TIME_LIMIT_S) -> None:
        self.targets = settings.email_to
        self._settings = settings
        self._timeout_s = timeout_s

    async def send(self, address: str, message: Message) -> str | None:
        return await self._send(address, compose(message, self._settings, address))

    async def edit(self, address: str, external_id: str, message: Message) -> None:
        """A mail cannot be edited: who joined a fold since is said in one that answers it."""
        await self._send(address, compose(message, self._settings, address, follows=True))

    async def close(self) -> None:
        return None

    async def _send(self, to: str, mail: EmailMessage) -> str:
        sender = sender_of(self._settings)[1]
        is_out = is_taken = False
        try:
            async with asyncio.timeout(self._timeout_s), connected(self._settings, self._timeout_s) as smtp:
                await smtp.mail(sender)
                await smtp.rcpt(to)
                is_out = True
                await smtp.data(mail.as_bytes())
                is_taken = True
        except (TimeoutError, OSError, SMTPException) as problem:
            if not is_taken:  # else only the goodbye was too slow
                raise failure(problem, self._settings, is_out=is_out) from None
        return str(mail["Message-ID"])


@asynccontextmanager
async def connected(settings: Settings, timeout_s: float) -> AsyncIterator[SMTP]:
    """
    A server that takes mail from us: connected, over TLS where it must be, logged in where a user is set.

    Raises:
        DeliveryError, OSError, SMTPException, TimeoutError: `failure` tells what each comes to.
    """
    server = server_of(settings)
    smtp = SMTP(
        hostname=server.host,
        port=server.port,
        use_tls=server.is_tls,
        start_tls=False,
        timeout=timeout_s,
        local_hostname=_own_name(),
    )
    transports = []
    try:
        await smtp.connect()
        transports.append(smtp.transport)
        if not server.is_tls:
            await _encrypt(smtp, server)
        if server.user and server.password:
            await smtp.login(server.user, server.password)
        yield smtp
        with contextlib.suppress(OSError, SMTPException):
            await smtp.quit(timeout=_GOODBYE_S)
    finally:
        transports.append(smtp.transport)  # TLS has one of its own
        smtp.close()
        for transport in transports:  # a close in good order would wait for the other side, which may never answer
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        await asyncio.sleep(0)  # until they are gone


async def _encrypt(smtp: SMTP, server: Server) -> None:
    """STARTTLS; where it is not offered go on only within this machine, and without a password."""
    await smtp.ehlo()
    if smtp.supports_extension("starttls"):
        await smtp.starttls()
        await smtp.ehlo()
    elif not may_be_plain(str(smtp.get_transport_info("peername")[0]), has_password=server.password is not None):
        raise Refused(
            f"{server.shown} offers no STARTTLS, so nothing is sent to it; use smtps:// (port 465), or another server"
        )


def may_be_plain(peer: str, *, has_password: bool) -> bool:
    """Whether a server may be talked to without TLS: only one on this machine, and only without a password."""
    return not has_password and _is_ip(peer) and ipaddress.ip_address(peer.partition("%")[0]).is_loopback


def failure(problem: BaseException, settings: Settings, *, is_out: bool = False) -> DeliveryError:
    """
    What a failure comes to, in the words of the channels.

    Args:
        is_out: the mail itself was on its way to the server.
    """
    server = server_of(settings)
    if untrusted := _certificate(problem):
        return Unreachable(
            f"the certificate of {server.shown} is not trusted: {untrusted.verify_message}; TOCSIN_SMTP_URL must have"
            " the name in the certificate, and SSL_CERT_FILE names an authority of your own",
            is_slow=True,
        )
    if isinstance(problem, DeliveryError):
        return problem
    if isinstance(problem, SMTPResponseException):
        return _reply(problem, settings)
    if isinstance(problem.__cause__ or problem, ssl.SSLError):
        return Unreachable(f"{_text(problem, settings)}; smtps:// is for port 465, smtp:// for 587", is_slow=True)
    if isinstance(problem, TimeoutError):
        return Unreachable(f"{server.shown} did not answer in time", unclear=is_out)
    if isinstance(problem, OSError):  # also what the library says of a lost connection
        return Unreachable(_text(problem, settings), unclear=is_out)
    return Refused(_text(problem, settings))  # it cannot do what we need


def _reply(problem: SMTPResponseException, settings: Settings) -> DeliveryError:
    """What a server's refusal comes to (RFC 5321, section 4.2.1: 4yz passes, 5yz stays)."""
    code, said = problem.code, _text(problem, settings)
    is_full = isinstance(problem, SMTPRecipientRefused) and code == 552  # section 4.5.3.1.10: as 452
    if not 500 <= code <= 599 or is_full:
        return Unreachable(said, is_slow=True)
    if isinstance(problem, SMTPAuthenticationError) or code in (530, 534, 535, 538):
        return Refused(f"user or password refused: {said}; check TOCSIN_SMTP_URL")
    if isinstance(problem, SMTPRecipientRefused):
        return Refused(f"recipient refused: {said}")
    if isinstance(problem, aiosmtplib.SMTPSenderRefused):
        return Refused(f"sender {sender_of(settings)[1]} refused: {said}; set TOCSIN_EMAIL_FROM to one that it takes")
    if isinstance(problem, SMTPDataError):
        return Unacceptable(f"mail refused: {said}")
    return Refused(said)


def _text(problem: BaseException, settings: Settings) -> str:
    """What went wrong and where, without the password in any form in which a server could say it back."""
    server = server_of(settings)
    if isinstance(problem, SMTPResponseException):
        said = f"{problem.code} {problem.message}"
    elif isinstance(problem, SMTPServerDisconnected):
        said = "the connection was lost"
    else:
        cause = problem.__cause__ or problem
        said = str(cause) or type(cause).__name__
    secrets = []
    if server.user and server.password:
        pair = f"\0{server.user}\0{server.password}"
        secrets = [base64.b64encode(text.encode()).decode() for text in (pair, server.password)] + [server.password]
    return scrubbed(f"{server.shown}: {said}", settings, *secrets)


def _certificate(problem: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while problem is not None and not isinstance(problem, ssl.SSLCertVerificationError):
        problem = problem.__cause__ or problem.__context__
    return problem


def _own_name() -> str:
    """How this machine greets; not by asking for its full name, which may take as long as a lost resolver."""
    name = socket.gethostname()
    return name if "." in name and re.fullmatch(r"[A-Za-z0-9.-]{1,255}", name) else "[127.0.0.1]"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
