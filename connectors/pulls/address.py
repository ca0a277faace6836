"""Where to pull from: `langfuse://HOST[:PORT][/PREFIX]/PROJECT?since=...&overlap=...`.

The scheme names the product. Requests go over https; `langfuse+http://` is plain http. Credentials come from the environment alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from counterplay.core.errors import UserError

PRODUCTS = ("langfuse", "langsmith", "phoenix", "mlflow")
_URL = re.compile(rf"({'|'.join(PRODUCTS)})(\+https?)?://", re.IGNORECASE)
_SPAN = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FORM = "langfuse://HOST[:PORT]/PROJECT[?since=2026-01-31&overlap=1h], or langsmith, phoenix, mlflow in its place"


@dataclass(frozen=True)
class Address:
    """A project on a server.

    `base` is the URL before the API's paths. `since_us` is the begin of what is wanted, in microseconds since 1970, None: everything.
    `overlap_us` is how far a later pull reaches back behind the end of the one before, for what arrived late.
    """

    product: str
    base: str
    project: str
    since_us: int | None = None
    overlap_us: int = 3_600_000_000

    @property
    def uri(self) -> str:
        """Names the source: the same whatever was asked for."""
        return f"{self.product}://{self.base.partition('://')[2]}/{quote(self.project, safe='')}"

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc

    def check_secrecy(self, credentials: Mapping[str, str]) -> None:
        """Raises UserError where credentials would be sent unencrypted over a network."""
        if credentials and self.base.startswith("http://") and not _is_loopback(urlsplit(self.base).hostname or ""):
            do = f"Use {self.product}://, or a tunnel: ssh -L 3000:localhost:3000 {urlsplit(self.base).hostname}"
            raise UserError(f"got plain http to {self.host}, which would show the credentials to the network", "https, or loopback", do)


def is_address(text: str) -> bool:
    """Whether `text` names a server to pull from; anything else is a path."""
    return _URL.match(text) is not None


def address_of(url: str) -> Address:
    """Raises UserError, which repeats no part of the URL that may hold a secret."""
    found = _URL.match(url)
    if found is None:
        raise UserError("got a URL of no known product", _FORM)
    product, plain = found[1].lower(), (found[2] or "").lower() == "+http"
    parts = urlsplit(url)
    if "@" in parts.netloc:
        do = "Set them in the environment (docs/pulls.md), where no process list and no history shows them."
        raise UserError(f"got credentials in a {product} URL", "none there", do)
    segments = [unquote(part) for part in parts.path.split("/") if part]
    if not parts.hostname or not segments or parts.fragment:
        raise UserError(f"got a {product} URL without {'a project' if parts.hostname else 'a host'}", _FORM)
    base = "/".join((f"{'http' if plain else 'https'}://{_host(parts)}", *(quote(part, safe="") for part in segments[:-1])))
    since, overlap = _asked(parts.query)
    return Address(product, base, segments[-1], since, *(() if overlap is None else (overlap,)))


def _host(parts: SplitResult) -> str:
    try:
        port = parts.port
    except ValueError:
        raise UserError("got a port that is none", "a number up to 65535") from None
    name = (parts.hostname or "").lower()
    return (f"[{name}]" if ":" in name else name) + ("" if port is None else f":{port}")


def _asked(query: str) -> tuple[int | None, int | None]:
    """`since` and `overlap` in microseconds; None where they are not given."""
    given = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in given]
    if strange := sorted({*names} - {"since", "overlap"}):
        raise UserError(f"got {', '.join(strange)} in a URL to pull from", "since and overlap", "Credentials go into the environment.")
    if len({*names}) < len(names):
        raise UserError("got since or overlap twice", "each once")
    values = dict(given)
    since, overlap = values.get("since"), values.get("overlap")
    return None if since is None else moment_us(since, "since="), None if overlap is None else span_us(overlap, "overlap=")


def moment_us(text: str, what: str) -> int:
    """Microseconds since 1970 of an ISO date or time, UTC unless it says otherwise. Raises UserError, which calls the text `what`."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)  # a plus sign in a query reads as a blank
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise UserError(f"got {what}{text[:40]}", "an ISO date or time, such as 2026-01-31 or 2026-01-31T08:00Z") from None


def span_us(text: str, what: str) -> int:
    """Microseconds of a span such as 90m, 12h or 30d. Raises UserError, which calls the text `what`."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise UserError(f"got {what}{text[:40]}", "a number with s, m, h or d, such as 90m")
    return int(found[1]) * _SECONDS[found[2]] * 1_000_000


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
