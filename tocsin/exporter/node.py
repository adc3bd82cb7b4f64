"""
What the errors of Node say of what failed: by their codes, classes, packages, and what they say.

Node's own and its libraries' errors are told apart by a code (``ECONNREFUSED``, SQLSTATE ``23505``, Prisma's
``P2002``), which OpenTelemetry gives as the exception's type; a bare ``Error`` by the package that raised it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_LOST: Final = frozenset(
    "ECONNREFUSED ECONNRESET ETIMEDOUT ENOTFOUND EAI_AGAIN EPIPE EHOSTUNREACH ENETUNREACH ECONNABORTED".split()  # noqa: SIM905
)
_TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(_LOST, "network"),
    **dict.fromkeys(
        (
            *("ESOCKETTIMEDOUT", "ERR_NETWORK", "ERR_BAD_RESPONSE", "ERR_BAD_REQUEST", "ERR_FR_TOO_MANY_REDIRECTS"),
            *("AxiosError", "FetchError", "RequestError", "CERT_HAS_EXPIRED", "DEPTH_ZERO_SELF_SIGNED_CERT"),
            *("SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "ERR_TLS_CERT_ALTNAME_INVALID"),
        ),
        "network",
    ),
    **dict.fromkeys(("QueryFailedError", "DatabaseError", "PROTOCOL_CONNECTION_LOST", "PostgresError"), "database"),
    **dict.fromkeys(
        (
            *("ReplyError", "MaxRetriesPerRequestError", "ClusterAllFailedError", "SocketClosedUnexpectedlyError"),
            *("ClientClosedError", "UnrecoverableError", "NR_CLOSED", "UNCERTAIN_STATE"),
        ),
        "queue",
    ),
    **dict.fromkeys(
        ("JsonWebTokenError", "TokenExpiredError", "NotBeforeError", "UnauthorizedError", "ForbiddenError"),
        "authentication",
    ),
    **dict.fromkeys(("ZodError", "ValidationError", "ValiError", "FST_ERR_VALIDATION"), "validation"),
    **dict.fromkeys(("TelegramError", "GrammyError", "ETELEGRAM", "EFATAL"), "telegram"),
}
_FAMILIES: Final = (
    (re.compile(r"P\d{4}\Z|\d[0-9A-Z]{4}\Z|XX\d{3}\Z"), "database"),  # Prisma's codes, SQLSTATE
    (re.compile(r"PrismaClient|Prisma\w*Error|Sequelize|Mongo|Knex|ER_|SQLITE_|Drizzle|TypeORM"), "database"),
    (re.compile(r"Kafka|Amqp|Nats"), "queue"),
    (re.compile(r"UND_ERR_|ERR_SSL_|ERR_HTTP2_"), "network"),
    (re.compile(r"ERR_JW[A-Z]_"), "authentication"),
)
_PACKAGES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            *(
                "pg",
                "pg-pool",
                "pg-protocol",
                "pg-promise",
                "postgres",
                "mysql",
                "mysql2",
                "mongodb",
                "mongoose",
                "knex",
            ),
            *("sequelize", "typeorm", "better-sqlite3", "sqlite3", "tedious", "mssql", "oracledb", "@prisma/client"),
            *(
                "@supabase/postgrest-js",
                "@supabase/supabase-js",
                "drizzle-orm",
                "cassandra-driver",
                "@neondatabase/serverless",
            ),
        ),
        "database",
    ),
    **dict.fromkeys(
        (
            *("redis", "@redis/client", "ioredis", "redis-parser", "bull", "bullmq", "bee-queue", "kue", "amqplib"),
            *("kafkajs", "node-rdkafka", "nats", "agenda", "pg-boss", "@aws-sdk/client-sqs"),
        ),
        "queue",
    ),
    **dict.fromkeys(
        (
            *(
                "axios",
                "node-fetch",
                "undici",
                "got",
                "superagent",
                "request",
                "follow-redirects",
                "ws",
                "@grpc/grpc-js",
            ),
            *("nodemailer", "ssh2", "http-proxy", "needle", "ky"),
        ),
        "network",
    ),
    **dict.fromkeys(("jsonwebtoken", "jose", "passport", "express-jwt", "openid-client"), "authentication"),
    **dict.fromkeys(("zod", "joi", "yup", "ajv", "class-validator", "valibot"), "validation"),
    **dict.fromkeys(("telegraf", "grammy", "node-telegram-bot-api", "telegram"), "telegram"),
}

_AWAY_TYPES: Final = frozenset(
    {
        *(
            "P1000",
            "P1001",
            "P1002",
            "P1003",
            "P1008",
            "P1010",
            "P1011",
            "P1017",
            "P2024",
            "PrismaClientInitializationError",
        ),
        *("08000", "08001", "08003", "08004", "08006", "53300", "57P01", "57P02", "57P03", "28000", "28P01", "3D000"),
        *("PROTOCOL_CONNECTION_LOST", "ER_CON_COUNT_ERROR", "ER_ACCESS_DENIED_ERROR", "ER_SERVER_SHUTDOWN"),
        *("MongoNetworkError", "MongoNetworkTimeoutError", "MongoServerSelectionError", "MongooseServerSelectionError"),
        *("SequelizeConnectionError", "SequelizeConnectionRefusedError", "SequelizeHostNotFoundError"),
        *("SequelizeAccessDeniedError", "SequelizeConnectionAcquireTimeoutError", "KnexTimeoutError"),
        *("MaxRetriesPerRequestError", "ClusterAllFailedError", "NR_CLOSED", "SocketClosedUnexpectedlyError"),
        *("KafkaJSConnectionError", "KafkaJSNumberOfRetriesExceeded"),
    }
)
_AWAY_TEXT: Final = re.compile(
    r"connection (?:terminated|ended|is closed|timeout)|timeout exceeded when trying to connect"
    r"|can't reach database server|too many (?:clients|connections)|remaining connection slots"
    r"|socket closed unexpectedly",
    re.IGNORECASE,
)
# Where databases and brokers listen by default: all that Node says of one which is not there.
_PORTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("5432", "6432", "6543", "3306", "27017", "1433"), "database"),
    **dict.fromkeys(("6379", "5672", "9092", "4222"), "queue"),
}
_ADDRESS: Final = re.compile(r"\b(?:ECONNREFUSED|ETIMEDOUT|ECONNRESET|EHOSTUNREACH|EPIPE)\s[^\s]{1,255}?:(\d{2,5})\b")
_HOST: Final = re.compile(r"\b(?:ENOTFOUND|EAI_AGAIN) ([\w.-]{1,255})|https?://(?:[^\s/@]{0,200}@)?([\w.-]{1,255})")
_ANSWER: Final = re.compile(r"(?:AxiosError: )?Request failed with status code \d{3}\Z|fetch failed\Z|socket hang up\Z")
_BETWEEN: Final = re.compile(r"node:|internal/|<|native\Z|@opentelemetry/|generic-pool|express/|connect/|koa/|fastify/")


@lru_cache(maxsize=2048)
def type_category(name: str) -> str | None:
    """What a code or the name of a class speaks for."""
    if known := _TYPES.get(name):
        return known
    return next((category for pattern, category in _FAMILIES if pattern.match(name)), None)


def package_category(module: str) -> str | None:
    """What the package speaks for that a module is in: ``pg/lib/client``, ``@prisma/client/runtime/library``."""
    first, _, rest = module.partition("/")
    package = f"{first}/{rest.partition('/')[0]}" if first.startswith("@") else first
    return _PACKAGES.get(package)


def said_category(name: str, message: str, modules: tuple[str, ...]) -> str | None:
    """What failed, by where it was connecting to, by what it says, or by the package that raised it."""
    if not is_node(modules):
        return None
    if name in _LOST and (address := _ADDRESS.search(message[:2_000])) and (category := _PORTS.get(address[1])):
        return category
    raised_in = next((one for one in reversed(modules) if not _BETWEEN.match(one)), "")
    if category := package_category(raised_in):
        return category
    return "network" if _ANSWER.match(message[:200]) else None


def is_away(name: str, message: str, category: str | None) -> bool:
    """Whether a database or a broker cannot be reached; only for what is about one."""
    if category not in ("database", "queue"):
        return False
    return name in _AWAY_TYPES or name in _LOST or _AWAY_TEXT.search(message[:2_000]) is not None


def hosts_in(name: str, message: str) -> tuple[str, ...]:
    """The hosts that a fault of the network names: Node has them nowhere but in the message."""
    if type_category(name) != "network" and not message.startswith(("request to http", "Request failed")):
        return ()
    return tuple(found[1] or found[2] for found in _HOST.finditer(message[:2_000]))[:3]


@lru_cache(maxsize=512)
def is_node(modules: tuple[str, ...]) -> bool:
    """Whether frames are of JavaScript: a module there has slashes, or is one of Node's."""
    return any("/" in one or one.startswith("node:") for one in modules)
