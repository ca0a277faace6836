"""What a text claims that can be looked up: numbers however they are written, identifiers, names and quotations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

Kind = Literal["number", "identifier", "name", "quote"]

_QUOTE = re.compile(r"[\u201c\u201e\u00ab\"]([^\u201c\u201d\u201e\u00ab\u00bb\"\n]{8,400})[\u201d\u201c\u00bb\"]")
_IDENTIFIER = re.compile(  # each part begins where no such part goes on, so that a long word is read once
    r"https?://[^\s<>\"')\]]+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+"
    r"|(?<![\w#/-])[#/-]*(?:[A-Za-z][A-Za-z_#/-]*\d[\w#/-]*|\d[\d#/-]*[A-Za-z_][\w#/-]*)"
)
_NUMBER = re.compile(r"(?<![\w.,])[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
_MEASURE = re.compile(r"\d+(?:st|nd|rd|th|AM|PM|[KMG]B|K|M)|\d+-?[a-z]+(?:-[a-z]+)*")
_PARTS = re.compile(r"\d+(?:\.\d+)?")
_NAME = re.compile(r"(?<![\w.])[A-Z][a-z\u00df-\u00ff'\u2019]+(?:[ -][A-Z][a-z\u00df-\u00ff'\u2019]+)+")
_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")
_LIST_NUMBER = re.compile(r"^\s*(?:[-*#>]+\s*)?(?:\*\*)?\d{1,3}[.)]\s", re.MULTILINE)
_DATE = re.compile(
    r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s+(\d{1,2})(?:st|nd|rd|th)?\b(?:,?\s+(\d{4}))?", re.IGNORECASE
)
_LITTLE = """a an and are as at be been but by can could did do does for from had has have he her his i if in is it its may more most
not of on or our shall she should so some such than that the their them then there these they this to was we were what when which who will
with would you your"""
_EMPTY = frozenset(_LITTLE.split())


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a text says: as it was written, and in the one form that all its writings share."""

    kind: Kind
    text: str
    value: str


def claims_in(text: str, kinds: frozenset[str], *, shown: bool = False) -> Iterator[Claim]:
    """What `text` claims of these kinds. With `shown` it is evidence: the numbers inside of its dates, times and codes count too."""
    rest = text if shown else _LIST_NUMBER.sub(" ", text)
    if "quote" in kinds:
        yield from (Claim("quote", m[1], " ".join(words_of(m[1]))) for m in _QUOTE.finditer(rest) if len(words_of(m[1])) >= 3)
    if "identifier" in kinds:
        for match in _IDENTIFIER.finditer(rest):
            word = match[0].lstrip("#/-").rstrip(".,;:/-#")
            if shown or not _MEASURE.fullmatch(word):
                yield Claim("identifier", word, word.casefold())
    if "number" in kinds:
        yield from (Claim("number", written, plain_number(written)) for written in _numbers(rest, shown=shown))
    if "name" in kinds:
        rest = _DATE.sub(" ", rest)
        yield from (Claim("name", m[0], " ".join(words_of(m[0]))) for m in _NAME.finditer(rest) if not _opens_sentence(rest, m.start()))


def words_of(text: str, *, content: bool = False) -> list[str]:
    """The words in small letters, without punctuation; with `content`, without those that carry little meaning."""
    words = _WORD.findall(text.casefold().replace("\u2019", "'"))
    return [word for word in words if word not in _EMPTY] if content else words


def plain_number(text: str) -> str:
    """A number in the one form that all its writings share: no thousands, no trailing zeros, no sign."""
    try:
        number = abs(Decimal(text.replace(",", "").replace("\u2212", "-")))
    except InvalidOperation:
        return text
    return f"{number.normalize():f}"


def _numbers(text: str, *, shown: bool) -> Iterator[str]:
    if shown:
        yield from _PARTS.findall(text)
    else:
        text = _IDENTIFIER.sub(" ", text)
        yield from (part for match in _DATE.finditer(text) for part in (match[2], match[3]) if part)
        text = _DATE.sub(" ", text)
    yield from (match[0] for match in _NUMBER.finditer(text))


def _opens_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" \t*_#>-\"'(")
    return not before or before[-1] in ".!?:\n"
