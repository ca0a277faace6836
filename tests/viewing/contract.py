"""`viewer/src/types.ts` as a check: whether a value is of a type of the contract between the page and its server."""

import re
from functools import cache
from pathlib import Path

TYPES = Path(__file__).parents[2] / "viewer" / "src" / "types.ts"
_TOKENS = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|\d+|[{}\[\]<>|;:,?()=])')


class _Reader:
    """A reader of the part of TypeScript that the contract is written in. Types are functions that give the first complaint, or None."""

    def __init__(self, text):
        text = re.sub(r"/\*.*?\*/|^//.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
        self.tokens, self.at = _TOKENS.findall(text), 0

    def next(self, wanted=None):
        token = self.tokens[self.at]
        assert wanted is None or token == wanted, (wanted, self.tokens[self.at : self.at + 8])
        self.at += 1
        return token

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def declarations(self):
        found = {}
        while self.peek():
            self.next("export")
            kind, name = self.next(), self.next()
            if kind == "interface":
                parents = []
                if self.peek() == "extends":
                    self.next()
                    parents.append(self.next())
                found[name] = ("object", self.fields(), parents)
            else:
                self.next("=")
                found[name] = self.union()
                self.next(";")
        return found

    def union(self):
        if self.peek() == "|":
            self.next()
        options = [self.array()]
        while self.peek() == "|":
            self.next()
            options.append(self.array())
        return ("union", options) if len(options) > 1 else options[0]

    def array(self):
        made = self.single()
        while self.peek() == "[":
            self.next()
            self.next("]")
            made = ("array", made)
        return made

    def single(self):
        token = self.peek()
        if token == "{":
            return ("object", self.fields(), [])
        token = self.next()
        if token == "(":
            made = self.union()
            self.next(")")
            return made
        if token == "[":
            items = [self.union()]
            while self.peek() == ",":
                self.next()
                items.append(self.union())
            self.next("]")
            return ("tuple", items)
        if token == "Record":
            self.next("<")
            self.union()
            self.next(",")
            made = self.union()
            self.next(">")
            return ("record", made)
        return ("literal", token[1:-1]) if token.startswith('"') else ("literal", int(token)) if token.isdigit() else ("name", token)

    def fields(self):
        self.next("{")
        found = {}
        while self.peek() != "}":
            name = self.next()
            if name == "[":  # an index signature
                while self.next() != "]":
                    pass
                name = "*"
            self.next(":")
            found[name] = self.union()
            if self.peek() == ";":
                self.next()
        self.next("}")
        return found


@cache
def declared():
    return _Reader(TYPES.read_text()).declarations()


def complaint(value, wanted, where="$"):
    """The first way in which `value` is not of the type of this name, or of this read type; None where it is."""
    kind, about, *rest = ("name", wanted) if isinstance(wanted, str) else wanted
    return _CHECKS[kind](value, about, *rest, where)


def _name(value, name, where):
    if name in ("Json", "unknown"):
        return None
    if name not in _BASIC:
        return complaint(value, declared()[name], where)
    return None if _BASIC[name](value) else f"{where}: got {value!r:.60}, wanted {name}"


def _literal(value, literal, where):
    return None if value == literal else f"{where}: got {value!r:.60}, wanted {literal!r}"


def _union(value, options, where):
    found = [complaint(value, option, where) for option in options]
    return None if None in found else max(found, key=lambda text: text.index(":"))


def _array(value, item, where):
    if not isinstance(value, list | tuple):
        return f"{where}: got {value!r:.60}, wanted a list"
    return _first(complaint(each, item, f"{where}[{i}]") for i, each in enumerate(value))


def _tuple(value, items, where):
    if not isinstance(value, list | tuple) or len(value) != len(items):
        return f"{where}: got {value!r:.60}, wanted {len(items)} items"
    return _first(complaint(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(value, items, strict=True)))


def _record(value, item, where):
    if not isinstance(value, dict):
        return f"{where}: got {value!r:.60}, wanted an object"
    return _first(complaint(each, item, f"{where}[{key!r}]") for key, each in value.items())


def _object(value, fields, parents, where):
    if not isinstance(value, dict):
        return f"{where}: got {value!r:.60}, wanted an object"
    fields = {**{name: each for parent in parents for name, each in declared()[parent][1].items()}, **fields}
    if set(value) != set(fields):
        return f"{where}: got {sorted(set(value) - set(fields))} too many, {sorted(set(fields) - set(value))} missing"
    return _first(complaint(value[name], each, f"{where}.{name}") for name, each in fields.items())


def _first(found):
    return next(filter(None, found), None)


_BASIC = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_CHECKS = {"name": _name, "literal": _literal, "union": _union, "array": _array, "tuple": _tuple, "record": _record, "object": _object}
