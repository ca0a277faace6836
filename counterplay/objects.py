"""Object stores by URI: what is in a prefix, and errors by name. S3, Google Cloud Storage and Azure through `pyarrow.fs`.

Credentials come from where the clouds' own tools take them (environment, profile, instance role), never from a URI, and are in no
error, log or store. `s3://BUCKET/KEY?endpoint=http://HOST:PORT&region=NAME&anonymous=true` names another server than Amazon's.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from counterplay.core.errors import SourceError, UserError

SCHEMES: Mapping[str, str] = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""The schemes that name an object store, and the one that each is kept under."""

_URI = re.compile(rf"({'|'.join(SCHEMES)})://(.*)", re.IGNORECASE | re.DOTALL)
_FORM = "s3://BUCKET/PREFIX[?endpoint=URL&region=NAME&anonymous=true], gs:// or az:// in its place"
_OPTIONS = {"s3": {"endpoint", "region", "anonymous"}, "gs": {"endpoint", "anonymous"}, "az": {"account"}}
_SECRET = re.compile(r"key|secret|token|password|signature|credential|^sig$", re.IGNORECASE)
_AWS = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?")
_DENIED = {"ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "SIGNATURE_DOES_NOT_MATCH", "MISSING_AUTHENTICATION_TOKEN",
           "UNRECOGNIZED_CLIENT", "INCOMPLETE_SIGNATURE", "NOT_SIGNED"}  # fmt: skip
_EXPIRED = {"REQUEST_EXPIRED", "EXPIRED_TOKEN", "REQUEST_TIME_TOO_SKEWED"}
_UNPARSED = re.compile(r"Unable to parse ExceptionName: (\w+)")
_UNREACHED = ("curlcode", "curl error", "timed out", "could not resolve", "fail to get a new connection")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_TIMEOUT_S = 20.0
_CONNECT_S = 3.0
_PATIENT_S = 60.0
_TRIES = 5
_FIRST_TRIES = 2
WAIT_S = 0.1
_SERVERS = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_OTHER = {
    "s3": "Check the network. For another server than Amazon's set AWS_ENDPOINT_URL_S3 to its URL, or add ?endpoint=http://HOST:PORT.",
    "gs": "Check the network. For another server than Google's add ?endpoint=HOST:PORT.",
    "az": "Check the network, and the account: AZURE_STORAGE_ACCOUNT, or ?account=NAME.",
}
_GIVEN = "Check that it runs at that address (?endpoint=URL, or AWS_ENDPOINT_URL_S3 for s3) and the network, then run again."
_ASKED_FOR_REGIONS = "s3.us-east-1.amazonaws.com"
T = TypeVar("T")
_PUBLIC = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket needs ?anonymous=true."
_WORDS = {
    "bucket": ("got {uri}, and there is no bucket {bucket}", "a bucket that exists", "Check its name, region and endpoint."),
    "expired": ("got expired credentials for {uri}", "current ones", "Log in again, and check this machine's clock."),
    "denied": ("got no access to {uri}{have}", "credentials that may list, read or write it", _PUBLIC),
    "missing": ("got {uri}, where there is no object and no prefix", "one that exists", "Check the path."),
    "region": ("got {uri}, whose bucket is in another region", "that region", "Set AWS_REGION, or ?region=NAME."),
    "network": ("got no answer from {server} for {uri} (bucket {bucket})", "a network to that server", "{other}"),
    "server": ("got an error of the server of {uri} ({said})", "the object", "Run again; what was read is stored."),
}


class ToldError(OSError):
    """Has its words already, and nothing is asked again."""


@dataclass(frozen=True, slots=True)
class Location:
    """A key or prefix of an object store. `path` is BUCKET/KEY without a slash at its end; `options` are those of the URI."""

    scheme: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def uri(self) -> str:
        """Names it, without options: what provenance and watermarks say."""
        return f"{self.scheme}://{self.path}"

    @property
    def bucket(self) -> str:
        return self.path.partition("/")[0]

    @property
    def endpoint(self) -> str:
        """The server that the URI or the environment names; empty: the scheme's own."""
        return dict(self.options).get("endpoint") or _endpoint_of(self.scheme)

    def inside(self, name: str) -> Location:
        """What lies under it: `name` with slashes."""
        return replace(self, path=f"{self.path}/{name}")

    def filesystem(self, *, patient: bool = False) -> Any:
        """The `pyarrow.fs.FileSystem` whose paths are BUCKET/KEY; one a process for equal options.

        A `patient` one asks again by itself where a request fails, for what is sent in parts. Raises SourceError by name.
        """
        plain = "" if self.endpoint else self.bucket
        try:
            return _filesystem(self.scheme, self.options, self.endpoint, plain, patient=patient)
        except (OSError, ValueError) as error:
            raise named(error, self) from error


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing. `modified_us` is in microseconds since 1970, 0 where the server does not say."""

    location: Location
    size: int
    modified_us: int


def is_uri(text: str) -> bool:
    """Whether `text` names an object store; anything else is a path, a server or a database."""
    return _URI.match(text) is not None


def location_of(uri: str) -> Location:
    """Raises UserError, which repeats no part of the URI that may hold a secret."""
    found = _URI.match(uri)
    if found is None:
        raise UserError("got a URI of no known object store", _FORM)
    scheme, rest = SCHEMES[found[1].lower()], found[2]
    path, options = _options(scheme, rest)
    if "@" in path.partition("/")[0] and scheme == "s3":
        raise UserError(f"got credentials in an {scheme} URI", "none there", "Set them in the environment or in a profile.")
    if not path.strip("/") or path.startswith("/"):
        raise UserError(f"got an {scheme} URI without a bucket", _FORM)
    return Location(scheme, path.rstrip("/"), options)


def entries(location: Location, *, recursive: bool) -> tuple[list[Entry], list[Location]]:
    """The objects under a prefix and, where not `recursive`, the folders in it, both in name order. Raises SourceError by name."""
    from pyarrow import fs

    selector = fs.FileSelector(location.path, allow_not_found=False, recursive=recursive)
    infos = tried(lambda: location.filesystem().get_file_info(selector), location)
    files = sorted((info for info in infos if info.type == fs.FileType.File), key=lambda info: info.path)
    folders = sorted(info.path for info in infos if info.type == fs.FileType.Directory and not recursive)
    return [_entry(location, info) for info in files], [replace(location, path=path) for path in folders]


def entry_of(location: Location) -> Entry | None:
    """The object of that very name; None where there is none (a prefix, or nothing), and where a listing says better why.

    It is what a server is asked first: raises SourceError within seconds where it can't be reached.
    """
    from pyarrow import fs

    try:
        info = tried(lambda: location.filesystem().get_file_info(location.path), location, unreached=_FIRST_TRIES)
    except SourceError as error:
        if _unreached(error):
            raise
        return None
    return _entry(location, info) if info.type == fs.FileType.File else None


def tag_of(opened: Any) -> str:
    """The etag of an opened object, or what else tells one version from another."""
    about = {str(name).lower(): value for name, value in (opened.metadata() or {}).items()}
    found = about.get("etag") or about.get("generation") or about.get("last-modified") or b""
    return f"{found.decode(errors='replace') if isinstance(found, bytes) else found} {opened.size()}"


def named(error: BaseException, location: Location) -> SourceError:
    """What went wrong in words of our own: the server's may hold anything."""
    kind, said = _kind(error), type(error).__name__
    if found := _AWS.search(str(error)):
        said = " ".join(filter(None, (found[1], found[2] and f"HTTP {found[2]}")))
    got, wanted, do = _WORDS[kind]
    have = "" if _has_credentials() else ", and no credentials in the environment"
    server, other = _server(location)
    return SourceError(
        got.format(uri=location.uri, bucket=location.bucket, have=have, said=said, server=server), wanted, do.format(other=other)
    )


def tried(ask: Callable[[], T], location: Location, *, unreached: int = _TRIES) -> T:
    """The answer, asked for a few times where the server fails, at most `unreached` times where it can't be reached.

    Raises SourceError by name, a ToldError as it comes.
    """
    for attempt in range(_TRIES):
        try:
            return ask()
        except ToldError:
            raise
        except OSError as error:
            tries = unreached if _kind(error) == "network" else _TRIES
            if attempt >= tries - 1 or not is_passing(error):
                raise named(error, location) from error
            time.sleep(WAIT_S * 2**attempt)
    raise AssertionError


def is_passing(error: BaseException) -> bool:
    """Whether it may be gone when it is asked again: a failure of the network or the server, not a refusal."""
    return _kind(error) in ("network", "server")


def _kind(error: BaseException) -> str:
    """Which of `_WORDS` an error is."""
    text = str(error)
    lower = text.lower()
    code, status = (found[1], found[2] or "") if (found := _AWS.search(text)) else ("", "")
    if unparsed := _UNPARSED.search(text):
        code = _CAMEL.sub("_", unparsed[1]).upper()
    kinds = {
        "bucket": code == "NO_SUCH_BUCKET",
        "expired": code in _EXPIRED,
        "denied": code in _DENIED or status in ("401", "403") or "credentials" in lower or isinstance(error, PermissionError),
        "missing": isinstance(error, FileNotFoundError) or code in ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND") or status == "404",
        "region": status == "301" or ("region" in lower and "redirect" in lower),
        "network": code == "NETWORK_CONNECTION" or isinstance(error, TimeoutError) or any(word in lower for word in _UNREACHED),
    }
    return next((kind for kind, holds in kinds.items() if holds), "server")


def _unreached(error: SourceError) -> bool:
    return isinstance(error.__cause__, OSError) and _kind(error.__cause__) == "network"


def _server(location: Location) -> tuple[str, str]:
    """The server that a location is asked of, without what may be secret in its address, and what to do where it does not answer."""
    if location.endpoint:
        return f"the server {location.endpoint.rpartition('@')[2]}", _GIVEN
    return _SERVERS[location.scheme], _OTHER[location.scheme]


def _entry(location: Location, info: Any) -> Entry:
    return Entry(replace(location, path=info.path), info.size or 0, (info.mtime_ns or 0) // 1000)


def _options(scheme: str, rest: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A key may hold a question mark: what follows the last one are options only where it reads like options."""
    path, mark, query = rest.rpartition("?")
    given = parse_qsl(query, keep_blank_values=True) if mark else []
    if any(_SECRET.search(name) for name, _ in given):
        raise UserError(f"got a secret in an {scheme} URI", "none there", "Set credentials in the environment or in a profile.")
    if not given or not {name for name, _ in given} <= _OPTIONS[scheme]:
        return rest, ()
    if any(name == "endpoint" and urlsplit(value).username for name, value in given):
        raise UserError("got credentials in an endpoint", "none there", "Set them in the environment or in a profile.")
    return path, tuple(sorted(given))


def _endpoint_of(scheme: str) -> str:
    return (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "") if scheme == "s3" else ""


def _has_credentials() -> bool:
    return any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"))


@cache
def _filesystem(scheme: str, options: tuple[tuple[str, str], ...], endpoint: str, bucket: str, *, patient: bool) -> Any:
    """`bucket` is given where its region has to be asked for."""
    from pyarrow import fs

    given = dict(options)
    anonymous = given.get("anonymous", "").lower() in ("true", "1", "yes")
    if scheme == "s3":
        region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return fs.S3FileSystem(
            anonymous=anonymous,
            region=region or (_region_of(bucket) if bucket else "us-east-1"),
            endpoint_override=endpoint or None,
            connect_timeout=_CONNECT_S,
            request_timeout=_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3 if patient else 1),
        )
    if scheme == "gs":
        limit = timedelta(seconds=_PATIENT_S if patient else 1)  # so long it asks again by itself
        return fs.GcsFileSystem(anonymous=anonymous, endpoint_override=given.get("endpoint"), retry_time_limit=limit)
    account = given.get("account") or os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise UserError("got an az URI and no storage account", "one", "Set AZURE_STORAGE_ACCOUNT, or ?account=NAME.")
    return fs.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_KEY"))


def _region_of(bucket: str) -> str:
    """The region of one of Amazon's buckets. Who is asked for it asks again for a long time: first whether there is a way there at all.

    A way through a proxy is not looked at.
    """
    from pyarrow import fs

    if not any(name.lower() in ("https_proxy", "all_proxy") and value for name, value in os.environ.items()):
        try:
            socket.create_connection((_ASKED_FOR_REGIONS, 443), timeout=_CONNECT_S).close()
        except OSError as error:
            raise TimeoutError(f"curlCode: no connection to {_ASKED_FOR_REGIONS}") from error
    return str(fs.resolve_s3_region(bucket))
