"""
Secrets out of all that leaves the process: by the key that they stand under, and by their shape.

Runs in the capture path of users' services, on text that an attacker may have written: linear in the
size, and whatever goes wrong inside leaves a mark instead of the text.

Source: reliability.md S27 and S28; OWASP ASVS 5, 14.2.6, 16.2.5 and 16.5.3.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import Enum
from functools import lru_cache
from itertools import islice
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote_plus

from tocsin.contained import pass_on
from tocsin.text import STACK_LIMIT, clean

MASK = "[scrubbed]"
FAILED = "[scrub error]"
LEFT_OUT = "[left out]"
CYCLE = "[cycle]"
UNREADABLE = "[unreadable]"

TEXT_LIMIT = STACK_LIMIT
"""Characters of one text that are looked at; what is longer loses its middle unseen."""

VALUE_LIMIT = 1024
"""Characters kept of one text in a context."""

KEY_LIMIT = 256
DEPTH_LIMIT = 6
BREADTH_LIMIT = 50
TOTAL_LIMIT = 64 * 1024


def hide(values: Iterable[str]) -> None:
    """
    Register secrets by value, such as the database's password: no text shows them from now on.

    Values below 4 characters are left alone, since masking them would take other words apart.
    """
    global _hidden
    known = {value for value, _ in _hidden} | {value for value in values if len(value) >= 4 and value not in MASK}
    # A short value only as a word of its own: a database's password is often the name of the product.
    patterns = {
        value: re.escape(value) if len(value) >= 12 else rf"(?<!\w){re.escape(value)}(?!\w)"
        for value in sorted(known, key=len, reverse=True)
    }
    _hidden = tuple((value, re.compile(pattern)) for value, pattern in patterns.items())


def scrub_text(text: str) -> str:
    """
    The text with everything masked that looks like a secret or stands under a secret's name.

    Scrubbing twice changes nothing more. Scrub before shortening: half a secret has no shape.

    Raises:
        MemoryError, RecursionError: there was no room for the work.
    """
    try:
        return _scrub_text(text)
    except (MemoryError, RecursionError):  # for want of what the caller may have: nothing is known of the text
        raise
    except Exception as problem:
        pass_on(problem)
        return FAILED


def scrub_value(value: object, key: str | None = None, *, limit: int = VALUE_LIMIT) -> Any:
    """
    A value as JSON can hold it: secrets masked, bounded in depth, breadth and size, never raising.

    No method of an unknown class is called: such an object is named by its class.

    Args:
        key: the name that the value stands under; a secret's name masks all of it.
        limit: characters kept of each text.
    """
    return _Walk(limit).visit(value, key, 0)


def scrub_url(url: str) -> str:
    """A URL without its password, and with the secrets of its path, query and fragment masked."""
    try:
        rest, sharp, fragment = _fit(url, TEXT_LIMIT).partition("#")
        address, mark, query = rest.partition("?")
        return scrub_text(address) + mark + scrub_query(query) + sharp + scrub_query(fragment)
    except Exception:
        return FAILED


def scrub_query(query: str) -> str:
    """A query string with the values masked of parameters that are secret by name or by shape."""
    try:
        parts = re.split("([&;])", _fit(query, TEXT_LIMIT))
        names = {part.partition("=")[0] for part in parts}
        return "".join(_scrub_parameter(part, is_login="state" in names) for part in parts)
    except Exception:
        return FAILED


def is_secret_key(key: str) -> bool:
    """
    Whether a key names a secret: ``dbPassword``, ``X-Api-Key``, ``sessionid``; not ``author``, ``session_count``.

    Only the first 128 characters of a key are looked at.
    """
    return _is_secret_key(key[:128])


# Keys

_WORD = re.compile(r"[A-Z]+(?![a-zа-яё])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Secret wherever they stand, also within a word: "dbpassword".
_INSIDE = re.compile(
    r"passw(?:or)?d|passphrase|passcode|passkey|secret(?!ar)|credential|apikey|privatekey|accesskey|secretkey"
    r"|encryptionkey|accesstoken|refreshtoken|authtoken|idtoken|bearertoken|usertoken|bottoken|sessionid|sessid|sessionkey"
    r"|sessiontoken|csrf|xsrf|setcookie|(?<!pre)authorization|cardnumber|creditcard|cardno|ccnumber|passwort|пароль|пароля|секрет|токен"
)
_LAST = _words(
    "pass pw pwd psw token tokens secret cookie cookies session dsn otp totp pin ssn cvv cvv2 cvc cvc2 iban jwt bearer"
    " auth signature sig mnemonic userpass smtppass dbpass pgpass"
)
_KEYS_OF = _words(
    "api private secret access signing sign encryption master auth ssh hmac session service crypto stripe openai"
)
_CARDS_OF = _words("credit debit bank payment gift")
# What a secret's value stands under: "token_value", "auth_header", "card_number".
_VALUES = _words(
    "value values secret key keys header headers code data string raw hash text plain plaintext token number num no nr"
    " id hex new old current confirm confirmation repeat again 1 2 cookie cookies encrypted"
)
# What is told about a secret, and is none.
_ABOUT = _words(
    "count counts counter type types name names length len size at date time timeout expires expiry expired expiration"
    " ttl age url uri path domain policy policies enabled disabled required valid invalid status state method methods"
    " limit limits max min used usage version exempt failed failures error errors protection changed updated created"
    " reset strength rules rule label field fields form hint prompt consent banner prefix format scheme provider"
    " service backend middleware handler manager factory class model view kind brand holder issuer network last4"
    " attempts retries rotation refreshed middlewares validator validators index position lifetime engine maker"
)
_ASKING = _words("is has had num n no total max min count needs requires require use uses allow show expect")
_NO_TOKEN_OF = _words(
    "prompt completion total max min input output num cached reasoning used page next continuation cancel cancellation"
    " eos bos pad stop unk special sync"
)


@lru_cache(maxsize=4096)
def _is_secret_key(key: str) -> bool:
    words = [word.casefold() for word in _WORD.findall(key)]
    if not words:
        return False
    last = words[-1]
    if last in _ABOUT or words[0] in _ASKING:
        return False
    if _INSIDE.search("".join(words)):
        return True
    before = words[-2] if len(words) > 1 else ""
    if last in _LAST:
        return not (last in ("token", "tokens") and before in _NO_TOKEN_OF)
    if last in ("key", "keys"):
        return before in _KEYS_OF
    if last == "card":
        return len(words) == 1 or before in _CARDS_OF
    if last in _VALUES or last.isdigit():
        inner = [word for word in words[:-1] if word not in _VALUES]
        return (
            bool(inner)
            and (inner[-1] in _LAST or inner[-1] == "oauth" or (inner[-1] == "card" and last not in ("id", "data")))
            and not (inner[-1] in ("token", "card") and last == "id")
        )
    return words == ["connect", "sid"]


# Text


def _scrub_text(text: str) -> str:
    if len(text) > TEXT_LIMIT:
        text = _fit(text, TEXT_LIMIT)
    for _ in range(_MOST_ROUNDS):
        scrubbed = _scrub_once(text)
        if scrubbed == text:
            break
        text = scrubbed
        if len(text) > _ROUNDS_LIMIT:
            break
    return text if len(text) <= TEXT_LIMIT else _fit(text, TEXT_LIMIT)


def _scrub_once(text: str) -> str:
    for value, pattern in _hidden:
        if value in text:
            text = pattern.sub(MASK, text)
    low = text.lower()
    if len(low) > 512:
        low = " ".join(set(low.split()))  # each word once: fewer characters to look through
    for rule in _RULES if low.isascii() else _RULES + _RULES_BEYOND_ASCII:
        for need in rule.needs:
            if need in low:
                break
        else:
            continue
        for trigger in rule.triggers:
            if trigger in low:
                text = rule.scrub(text)
                break
    if _FOUR_DIGITS.search(low) is not None and _DIGITS.search(text) is not None:
        text = _CARD.sub(_mask_card, text)
    return text


# A mask can bring together what was apart: short texts are scrubbed until nothing changes.
_MOST_ROUNDS = 4
_ROUNDS_LIMIT = 8 * 1024


def _fit(text: str, limit: int) -> str:
    """The text with its middle cut out, so that no half of a secret is left at the seams."""
    if len(text) <= limit:
        return text
    keep = max(limit - 64, 0)
    head, tail = text[: keep * 3 // 4], text[len(text) - keep // 4 :]
    # A text without white space keeps all but what half a secret may reach over.
    head = head[: max(head.rfind("\n") + 1, head.rfind(" ") + 1, len(head) - _REACH)]
    after = _SEAM.search(tail)
    tail = tail[after.end() :] if after else tail[_REACH:]
    tail = _END_OF_KEY.sub("", tail, count=1)
    return f"{head}…[{len(text) - len(head) - len(tail)} characters left out]… {tail}"


_REACH = 4096
_SEAM = re.compile(r"\n|\s(?=[^\n]{0,200}\Z)")
_END_OF_KEY = re.compile(r"\A[A-Za-z0-9+/=\s\\]*+-----END [A-Z0-9 ]{0,40}-----")

# An end that is missing was cut off.
_DOUBLE = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_SINGLE = r"'[^'\\]*+(?:\\.[^'\\]*+)*+(?:'|\\?\Z)"
_QUOTED = f"(?:{_DOUBLE}|{_SINGLE})"
_PAIR = re.compile(
    r"""
    (?<![\w.-])
    ( -{0,2} \w [\w.-]*+ (?: [ ](?i:key|token)\b )? )
    (?: \\{0,3}["'] )?+ \]?+
    ( [ \t]{0,8} (?: ={1,3}>? | :=? | != | <> ) \s{0,8} | [ ]{1,4} (?i: i?like[ ]{1,4}(?=['"]) | in[ ]{0,4}\( ) )
    """,
    re.VERBOSE,
)
_VALUE = re.compile(
    rf"""
      (?P<done> \[scrubbed\] )
    | (?P<quoted> [bruBRU]{{0,2}} {_QUOTED} )
    | (?P<escaped> \\++["'] ) [^"'\\]*+ (?: \\++(?!["']) [^"'\\]*+ )*+ (?P<escaped_end> \\++["'] )?
    | \[ [^\]\n]*+ \]? | \{{ [^}}\n]*+ \}}? | \( [^)\n]*+ \)?
    | (?: (?i: bearer | basic | digest | token )[ ]{{1,4}} )?
      (?: [^\s,;&"'(){{}}\[\]<>]++ | ,(?! \s | \Z | [\w.-]{{1,32}}+[=:] ) )++
    """,
    re.VERBOSE | re.DOTALL,
)
_LINE = re.compile(r"[^\r\n]*+")
# Code in the lines of a stack, SQL's place holders, and what is no value at all.
_NO_SECRET = re.compile(
    r"(?:None|True|False|null|nil|undefined|none|true|false|str|bytes|int|bool|SecretStr|%s?|\?|\$\d{1,3}|:[a-z_]+|\*+)\Z"
    r"|(?:self|cls|request|settings|config|os|environ)\."
)
_CALL = re.compile(r"(?:await[ ])?(?:(?:[a-z]+[._])+[A-Za-z_.]+|[A-Z][A-Za-z]+)\Z")
_OPENING = re.compile("([bruBRU]*)(.)")
_PROSE = re.compile(r"[A-Za-z]{1,12}\Z")
# Words that prose also has before a colon: "invalid token: expected a comma".
_WEAK = ("token", "tokens", "session", "auth", "pin", "otp", "card", "pass", "signature", "dsn", "bearer", "iban")


def _scrub_pairs(text: str) -> str:
    """``key=value``, ``key: value``, ``"key": "value"`` and the like, where the key is secret."""
    kept: list[str] = []
    done = at = 0
    while (found := _PAIR.search(text, at)) is not None:
        at = start = found.end()
        key = found[1]
        if not _is_secret_key(key if len(key) <= 128 else key[:128]):
            continue
        is_line = ":" in found[2] and text[start : start + 1] not in ("'", '"', "\\", "[", "{", "(") and _is_header(key)
        value = (_LINE if is_line else _VALUE).match(text, start)
        if value is None or value.end() == start:
            continue
        masked = MASK if is_line else _masked(found, value, text)
        if masked is None:
            continue
        kept += (text[done:start], masked)
        done = at = value.end()
    if not done:
        return text
    kept.append(text[done:])
    return "".join(kept)


def _is_header(key: str) -> bool:
    low = key.lower()
    return low.endswith(("cookie", "authorization")) and "'" not in low


def _masked(pair: re.Match[str], value: re.Match[str], text: str) -> str | None:
    """What stands instead of a value; None where it is none."""
    quoted = value["quoted"]
    if quoted is not None:
        before, quote = _OPENING.match(quoted).groups()  # type: ignore[union-attr]  # the pattern has a quote
        after = quote if quoted.endswith(quote) else ""
        return f"{before}{quote}{MASK}{after}" if len(quoted) > len(before) + 2 else None
    if value["escaped"] is not None:
        return f"{value['escaped']}{MASK}{value['escaped_end'] or ''}"
    found = value[0]
    if value["done"] is not None:
        return None
    if _NO_SECRET.match(found) or found == pair[1]:  # code hands things on: auth=auth
        return None
    if text[value.end() : value.end() + 1] in ("(", "[") and _CALL.match(found):
        return None
    if ":" in pair[2] and pair[0].endswith((" ", "\t")) and pair[1].lower().endswith(_WEAK) and _PROSE.match(found):
        return None
    return MASK


_URL_PASSWORD = re.compile(r"""(://[^\s:/?#@"'<>]{0,256}+:)[^\s/"'<>]{1,512}@""")
_URL_TOKEN = re.compile(r"(://)[A-Za-z0-9_-]{20,256}+@")
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}?PRIVATE KEY[A-Z ]{0,10}-----"
    r".*?(?:-----END [A-Z0-9 ]{0,40}?PRIVATE KEY[A-Z ]{0,10}-----|\Z)",
    re.DOTALL,
)
_JWT = re.compile(r"eyJ[\w-]{16,}+(?:\.[\w-]*+){0,4}")
_SCHEME = re.compile(r"\b(bearer|basic)(\s{1,4}|%20|\+)([\w.~+/=:-]{6,}+)", re.IGNORECASE)
_SCHEME_WORDS = re.compile(
    r"(?:auth\w*|tokens?|scheme|format|realm|credentials?|header|required|missing|invalid|error|\w+ing|\w+tion)[.:]?\Z",
    re.IGNORECASE,
)
_TELEGRAM = re.compile(r"(?<!\d)\d{5,12}:[A-Za-z0-9_-]{30,}+|(?<=/bot)\d{1,16}(?::|%3[Aa])[^/\s\"'?#&<>]++")
_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        (?:AKIA|ASIA)[A-Z0-9]{16}
      | gh[pousr]_[A-Za-z0-9]{20,}+ | github_pat_\w{20,}+
      | glpat-[\w-]{16,}+
      | xox[abeoprs]-[\w-]{8,}+ | xapp-[\w-]{8,}+
      | [rs]k_(?:live|test)_\w{8,}+ | whsec_[\w+/=]{16,}+ | sk-[\w-]{16,}+
      | AIza[\w-]{30,}+ | ya29\.[\w-]{16,}+
      | SG\.[\w-]{16,}+\.[\w-]{16,}+
      | npm_[A-Za-z0-9]{30,}+ | pypi-[\w-]{32,}+ | hf_[A-Za-z0-9]{24,}+
      | dop_v1_[0-9a-f]{32,}+ | shp(?:at|ss)_[0-9a-fA-F]{32,}+ | sbp_[0-9a-f]{32,}+
    )""",
    re.VERBOSE,
)
_PYDANTIC = re.compile(r"(?m)^([\w.\[\]-]++)\n([ ]{2}[^\n]{0,400}?\binput_value=)([^\n]*?)(?=, input_type=|\n|\Z)")
_TUPLE = re.compile(
    rf"""((?:\(\s{{0,8}}b?["']|["']--?)([\w-]{{1,64}}+)["']\s{{0,8}},\s{{0,8}})b?{_QUOTED}""", re.DOTALL
)
_OPTION = re.compile(r"(?<![\w-])(--[\w-]{2,64}+[ ])(?!-)([^\s\"']++|\"[^\"]*+\"?|'[^']*+'?)")
_ELEMENT = re.compile(r"<([\w.:-]{1,64}+)>([^<]++)</")
_INSERT = re.compile(r"insert\s+into\s+[^\s(]{1,200}+\s*\(([^()]{1,4000})\)\s*values\s*", re.IGNORECASE)
_DETAIL = re.compile(r"(\bKey \(([^()\n]{1,400})\)=\()([^\n]*)\)")
_FAILING_ROW = re.compile(r"(Failing row contains \()[^\n]*")
_LITERAL = re.compile(_QUOTED, re.DOTALL)

_CARD = re.compile(
    r"(?<![\w.])[2-6]\d{3}[ -]?\d{4}[ -]?\d{4}[ -]?\d{1,7}(?!\w|\.\d)"
    r"|(?<![\w.])3[47]\d\d[ -]?\d{6}[ -]?\d{5}(?!\w|\.\d)"
)
_DIGITS = re.compile("[2-6][0-9]{3}[ -]?[0-9]{4}")
_FOUR_DIGITS = re.compile("[2-6][0-9]{3}")  # no white space reaches into them: also in words that stand once


def _mask_card(match: re.Match[str]) -> str:
    digits = [int(digit) for digit in match[0] if digit.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    is_card = len(digits) in (13, 15, 16, 19) and (sum(digits[-1::-2]) + doubled) % 10 == 0
    return MASK if is_card else match[0]


def _scrub_urls(text: str) -> str:
    if "@" not in text:
        return text
    return _URL_TOKEN.sub(rf"\1{MASK}@", _URL_PASSWORD.sub(rf"\1{MASK}@", text))


def _scrub_scheme(match: re.Match[str]) -> str:
    return match[0] if _SCHEME_WORDS.match(match[3]) else f"{match[1]}{match[2]}{MASK}"


def _scrub_pydantic(match: re.Match[str]) -> str:
    return f"{match[1]}\n{match[2]}{MASK}" if is_secret_key(match[1]) else match[0]


def _scrub_tuple(match: re.Match[str]) -> str:
    return f"{match[1]}'{MASK}'" if is_secret_key(match[2]) else match[0]


def _scrub_option(match: re.Match[str]) -> str:
    return f"{match[1]}{MASK}" if is_secret_key(match[1]) else match[0]


def _scrub_element(match: re.Match[str]) -> str:
    return f"<{match[1]}>{MASK}</" if is_secret_key(match[1]) else match[0]


def _scrub_sql(text: str) -> str:
    """The literals of an INSERT with a secret column, and the parameters of a statement that names one."""
    kept: list[str] = []
    done = 0
    for found in _INSERT.finditer(text):
        if found.start() >= done and any(map(is_secret_key, found[1].split(","))):
            end = text.find("\n", found.end())
            end = len(text) if end < 0 else end
            kept += (text[done : found.end()], _LITERAL.sub(f"'{MASK}'", text[found.end() : end]))
            done = end
    text = "".join([*kept, text[done:]])
    statement, mark, parameters = text.partition("[parameters:")
    if mark and any(map(is_secret_key, re.findall(r"\w+", statement[-8000:].rpartition("[SQL:")[2]))):
        text = statement + mark + _LITERAL.sub(f"'{MASK}'", parameters)
    return text


def _scrub_detail(text: str) -> str:
    """PostgreSQL's DETAIL: the values of a key with a secret column, and a whole row."""

    def key(match: re.Match[str]) -> str:
        return f"{match[1]}{MASK})" if any(map(is_secret_key, match[2].split(","))) else match[0]

    return _FAILING_ROW.sub(rf"\1{MASK})", _DETAIL.sub(key, text))


def _scrub_named(text: str) -> str:
    """All that stands beside a secret's name."""
    if "input_value=" in text:
        text = _PYDANTIC.sub(_scrub_pydantic, text)
    if "--" in text:
        text = _OPTION.sub(_scrub_option, text)
    if "</" in text:
        text = _ELEMENT.sub(_scrub_element, text)
    if '("' in text or "('" in text or "(b" in text or "'-" in text or '"-' in text:
        text = _TUPLE.sub(_scrub_tuple, text)
    return _scrub_pairs(text)


def _one_of(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


_RARE = re.compile(
    r"(?:\bpin(?:[ _-]?code|_\w{1,20})?|[_-]pin|\bsig|(?:api|private)[ ]key)[\\\"']{0,3}\]?\s{0,8}[=:,]", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What to run where a trigger is in the lowered text; `in` costs 40 ns, a pattern 100 times that."""

    needs: str  #                   without one of these characters no trigger can be there, or mean anything
    triggers: tuple[str, ...]  #    without white space
    scrub: Callable[[str], str]


_RULES = (
    _Rule("-", ("-----begin",), lambda text: _PEM.sub(MASK, text)),
    _Rule(":", ("://",), _scrub_urls),
    _Rule(":/", (":aa", "/bot"), lambda text: _TELEGRAM.sub(MASK, text)),
    _Rule(
        "_",
        _one_of(
            "ghp_|gho_|ghs_|ghu_|ghr_|github_pat_|k_live_|k_test_|whsec_|npm_|hf_|dop_v1_|shpat_|shpss_|sbp_",
        ),
        lambda text: _TOKENS.sub(MASK, text),
    ),
    _Rule("-", _one_of("glpat-|xox|xapp-|sk-|pypi-"), lambda text: _TOKENS.sub(MASK, text)),
    _Rule("a.", _one_of("akia|asia|aiza|ya29.|sg."), lambda text: _TOKENS.sub(MASK, text)),
    _Rule("j", ("eyj",), lambda text: _JWT.sub(MASK, text)),
    _Rule("(", _one_of("insert|[parameters:"), _scrub_sql),
    _Rule("(", _one_of("detail:|failing"), _scrub_detail),
    _Rule("b", _one_of("bearer|basic"), lambda text: _SCHEME.sub(_scrub_scheme, text)),
    _Rule(
        "=:'\"(<-",
        _one_of(
            "pass|secret|token|auth|cookie|sess|srf|cred|_key|-key|ikey|tekey|sskey|onkey|gkey|rkey|pw|psw|dsn|otp"
            "|ssn|card|cvv|cvc|iban|jwt|bearer|signature",
        ),
        _scrub_named,
    ),
    _Rule("=:,", _one_of("pin|sig=|api|private"), lambda text: _scrub_named(text) if _RARE.search(text) else text),
)
_RULES_BEYOND_ASCII = (_Rule("=:'\"", _one_of("парол|секрет|токен"), _scrub_named),)
_hidden: tuple[tuple[str, re.Pattern[str]], ...] = ()  # longest first: one may hold another


def _scrub_parameter(part: str, *, is_login: bool) -> str:
    """One ``name=value`` of a query; a code beside a state is an OAuth log-in."""
    name, sign, value = part.partition("=")
    if not value:
        return scrub_text(part) if len(part) > 1 else part
    plain = unquote_plus(value)
    if is_secret_key(unquote_plus(name)) or (is_login and name == "code"):
        return name + sign + MASK
    return part if scrub_text(plain) == plain else name + sign + MASK


# Values


class _Walk:
    """One value on its way to JSON, with what is left of its budget of characters."""

    __slots__ = ("above", "left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = TOTAL_LIMIT
        self.above: set[int] = set()  # ids of the containers that the value is in

    def visit(self, value: object, key: str | None, depth: int) -> Any:
        try:
            return self._visit(value, key, depth)
        except BaseException as problem:  # of the value's own code
            pass_on(problem)
            return FAILED

    def _visit(self, value: object, key: str | None, depth: int) -> Any:
        if key is not None and is_secret_key(key):
            return MASK
        if self.left <= 0:
            return LEFT_OUT
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Enum):
            value = vars(value).get("_value_")
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            number = int.__int__(value)
            self.left -= 8
            return number if -(2**63) <= number < 2**63 else self._text(_big(number))
        if isinstance(value, float):
            number_ = float.__float__(value)
            self.left -= 8
            return number_ if math.isfinite(number_) else str(number_)
        if isinstance(value, bytes | bytearray):
            return self._bytes(bytes(value[: 4 * self.limit]), len(value))
        if isinstance(value, Mapping):
            return self._inside(value, depth, self._mapping)
        if isinstance(value, list | tuple | Set):
            return self._inside(value, depth, self._items)
        return self._text(_plain(value))

    def _text(self, text: str) -> str:
        text = clean(scrub_text(_fit(text, max(4 * self.limit, 4096))), min(self.limit, max(self.left, 16)))
        self.left -= len(text)
        return text

    def _bytes(self, data: bytes, size: int) -> str:
        try:
            return self._text(data.decode())
        except UnicodeDecodeError:
            return self._text(f"<{size} bytes>")

    def _inside(self, value: Any, depth: int, visit: Callable[[Any, int], Any]) -> Any:
        if id(value) in self.above:
            return CYCLE
        if depth >= DEPTH_LIMIT:
            return LEFT_OUT
        self.above.add(id(value))
        try:
            return visit(value, depth + 1)
        except BaseException as problem:
            pass_on(problem)
            return UNREADABLE
        finally:
            self.above.discard(id(value))

    def _mapping(self, value: Mapping[object, object], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in islice(value, BREADTH_LIMIT + 1):
            if len(found) >= BREADTH_LIMIT or self.left <= 0:
                found["…"] = LEFT_OUT
                break
            raw = _key(name)
            inside = value[name]
            found[self._name(raw)] = self.visit(inside, raw, depth)
        return found

    def _name(self, raw: str) -> str:
        text = clean(scrub_text(_fit(raw, 4 * KEY_LIMIT)), KEY_LIMIT)[:KEY_LIMIT]
        self.left -= len(text)
        return text

    def _items(self, value: Sequence[object] | Set[object], depth: int) -> list[Any]:
        if len(value) == 2 and isinstance(value, list | tuple) and isinstance(value[0], str | bytes):
            name = _key(value[0])  # a header, as ASGI has them
            if is_secret_key(name):
                return [self._name(name), MASK]
        found: list[Any] = []
        for one in islice(value, BREADTH_LIMIT + 1):
            if len(found) >= BREADTH_LIMIT or self.left <= 0:
                found.append(LEFT_OUT)
                break
            found.append(self.visit(one, None, depth))
        return found


def _key(name: object) -> str:
    if isinstance(name, str):
        return str.__str__(name)
    if isinstance(name, bytes):
        return bytes(name[: 4 * KEY_LIMIT]).decode("utf-8", "replace")
    if name is None or isinstance(name, bool):
        return str(name)
    if isinstance(name, int):
        return _big(int.__int__(name))
    return _plain(name)


def _big(number: int) -> str:
    try:
        return str(number)
    except ValueError:  # more digits than Python turns into text
        return hex(number)[:64] + "…"


_SHOWN = (float, complex, timedelta, range)
_SHOWN_WHERE_LOADED = (("decimal", "Decimal"), ("fractions", "Fraction"), ("uuid", "UUID"))


def _plain(value: object) -> str:
    """An object as text: what we know is safe to ask, and of all else only the class."""
    kind = type(value)
    if kind in _SHOWN or any(kind is getattr(sys.modules.get(home), name, None) for home, name in _SHOWN_WHERE_LOADED):
        return str(value)
    if isinstance(value, datetime | date | time) and kind.__module__ == "datetime":
        return value.isoformat()
    if isinstance(value, PurePath) and kind.__module__.partition(".")[0] == "pathlib":
        return str(value)
    return f"<{kind.__module__}.{kind.__qualname__} object>"
