"""What the errors of Node say of what failed."""

from __future__ import annotations

import pytest

from tocsin.exporter.classify import Evidence, Verdict, classify
from tocsin.model import Severity

NET = ("node:internal/process/task_queues", "node:net")
PG = ("orders/pay", "pg/lib/query", "pg/lib/client")


def _verdict(kind: str, message: str = "", modules: tuple[str, ...] = ("orders/pay",), **facts: object) -> Verdict:
    evidence = {"mechanism": "span", "types": (kind,), "message": message, "modules": modules, **facts}
    return classify(Evidence(**evidence))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "message", "modules", "category", "severity"),
    [
        ("ECONNREFUSED", "connect ECONNREFUSED 127.0.0.1:5432", NET, "database", Severity.CRITICAL),
        ("ECONNREFUSED", "connect ECONNREFUSED ::1:6379", NET, "queue", Severity.CRITICAL),
        ("ECONNREFUSED", "connect ECONNREFUSED 127.0.0.1:8080", NET, "network", Severity.HIGH),
        ("ECONNRESET", "read ECONNRESET", PG, "database", Severity.CRITICAL),
        ("ENOTFOUND", "getaddrinfo ENOTFOUND api.telegram.org", NET, "telegram", Severity.HIGH),
        ("ENOTFOUND", "getaddrinfo ENOTFOUND shop.amocrm.ru", NET, "amocrm", Severity.HIGH),
        ("FetchError", "request to https://u:p@x.kommo.com/api failed, reason: timeout", (), "amocrm", Severity.HIGH),
        (
            "ERR_BAD_RESPONSE",
            "Request failed with status code 504",
            ("axios/lib/core/settle",),
            "network",
            Severity.HIGH,
        ),
        ("Error", "Request failed with status code 504", ("node:net", "lib/x"), "network", Severity.HIGH),
        ("AxiosError", "Network Error", (), "network", Severity.HIGH),
        ("UND_ERR_CONNECT_TIMEOUT", "Connect Timeout Error", (), "network", Severity.HIGH),
        ("23505", "duplicate key value violates unique constraint", PG, "database", Severity.HIGH),
        ("57P01", "terminating connection due to administrator command", PG, "database", Severity.CRITICAL),
        ("error", 'relation "orders" does not exist', PG, "database", Severity.HIGH),
        ("Error", "Connection terminated unexpectedly", PG, "database", Severity.CRITICAL),
        ("Error", "no such order", ("node:events", "orders/pay"), "unknown", Severity.HIGH),
        ("P2002", "Unique constraint failed", ("@prisma/client/runtime/library",), "database", Severity.HIGH),
        ("PrismaClientInitializationError", "Can't reach database server", (), "database", Severity.CRITICAL),
        ("SequelizeConnectionRefusedError", "", (), "database", Severity.CRITICAL),
        ("ER_DUP_ENTRY", "Duplicate entry", ("mysql2/lib/packets/packet",), "database", Severity.HIGH),
        ("MongoServerSelectionError", "", (), "database", Severity.CRITICAL),
        ("ReplyError", "WRONGTYPE Operation against a key", ("redis-parser/lib/parser",), "queue", Severity.HIGH),
        ("MaxRetriesPerRequestError", "", ("ioredis/built/redis/index",), "queue", Severity.CRITICAL),
        ("Error", "Connection is closed.", ("ioredis/built/redis/event_handler",), "queue", Severity.CRITICAL),
        ("KafkaJSConnectionError", "", (), "queue", Severity.CRITICAL),
        ("TokenExpiredError", "jwt expired", ("jsonwebtoken/verify",), "authentication", Severity.HIGH),
        ("ERR_JWT_EXPIRED", "", (), "authentication", Severity.HIGH),
        ("ZodError", "[]", ("zod/v4/core/parse",), "validation", Severity.HIGH),
        ("Error", "409: Conflict", ("telegraf/lib/core/network/client",), "telegram", Severity.HIGH),
        (
            "TypeError",
            "Cannot read properties of undefined",
            ("express/lib/router", "orders/pay"),
            "unknown",
            Severity.HIGH,
        ),
    ],
)
def test_codes_classes_and_packages_of_node_speak(
    kind: str, message: str, modules: tuple[str, ...], category: str, severity: Severity
) -> None:
    """They have other names than Python's, and mostly a code instead of a class."""
    verdict = _verdict(kind, message, modules)

    assert (verdict.category, verdict.severity) == (category, severity)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_an_exception_that_was_answered_with_a_4xx_was_expected(status: int) -> None:
    assert not _verdict("NotFoundError", status_code=status).is_stored


def test_a_teams_own_rule_takes_a_folder_too() -> None:
    """A module of JavaScript has slashes where Python has dots."""
    evidence = Evidence(types=("Error",), modules=("billing/refunds",))

    assert classify(evidence, own=[("billing", "module", "billing")]).category == "billing"


def test_python_is_not_taken_for_node() -> None:
    """A message alone says nothing where a package could."""
    verdict = _verdict("ValueError", "connect ECONNREFUSED 127.0.0.1:5432", ("shop.orders",))

    assert (verdict.category, verdict.severity) == ("unknown", Severity.HIGH)
