"""Worlds of several shapes, each with tools that say truly what they touch, and calls to draw at random.

`touched` says the same as the declared effects once more, by hand and in other words: what a reference needs that shares no
code with what it checks. A place is a path of names, and () is everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, ClassVar

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, ToolSpec
from counterplay.replay.world import ToolError

Arguments = dict[str, Any]
Places = list[tuple[str, ...]]
Touch = Callable[[Arguments], Places]


def spec(name: str, effect: str) -> ToolSpec:
    return ToolSpec.function(name, name, {"type": "object", "properties": {}}, Effect.parse(effect))


class Shape:
    """What the worlds share: a call is a method, and `kinds` and `places` are the reference's view of it."""

    tools: ClassVar[Sequence[ToolSpec]] = ()
    kinds: ClassVar[Mapping[str, str]] = {}
    places: ClassVar[Mapping[str, Touch]] = {}
    prompt = (Message.system("A world of tools."), Message.user("Use them."))

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        found: Any = getattr(self, f"_{name}")(**arguments)
        return found if isinstance(found, str) else json.dumps(found)

    @classmethod
    def touched(cls, name: str, arguments: Arguments) -> tuple[str, Places]:
        return cls.kinds[name], cls.places[name](arguments)

    @staticmethod
    def draw(chance: Random) -> tuple[str, Arguments]:
        raise NotImplementedError


class Keys(Shape):
    """A dictionary that remembers the order of its keys, with reads of one, of all, and a sum that needs no world."""

    tools = (
        spec("get", "read(key:{key})"),
        spec("put", "write(key:{key})"),
        spec("append", "write(key:{key})"),
        spec("keys", "read(key)"),
        spec("double", "write(key)"),
        spec("plus", "pure"),
    )
    kinds: ClassVar = {"get": "read", "put": "write", "append": "write", "keys": "read", "double": "write", "plus": "pure"}
    places: ClassVar = {
        **dict.fromkeys(("get", "put", "append"), lambda a: [("key", a["key"])]),
        **dict.fromkeys(("keys", "double"), lambda _: [("key",)]),
        "plus": lambda _: [],
    }

    def __init__(self) -> None:
        self.held = {"a": 1, "b": 2}

    def _get(self, key: str) -> int:
        if key not in self.held:
            raise ToolError(f"no {key}")
        return self.held[key]

    def _put(self, key: str, value: int) -> str:
        was = self.held.get(key)
        self.held[key] = value
        return f"{key}: {was} is now {value}"

    def _append(self, key: str, value: int) -> str:
        self.held[key] = self.held.get(key, 0) * 10 + value
        return "done"

    def _keys(self) -> dict[str, int]:
        return self.held

    def _double(self) -> str:
        self.held = {key: 2 * value for key, value in self.held.items()}
        return f"doubled {len(self.held)}"

    def _plus(self, x: int, y: int) -> int:
        return x + y

    @staticmethod
    def draw(chance: Random) -> tuple[str, Arguments]:
        name = chance.choices(["get", "put", "append", "keys", "double", "plus"], [8, 3, 2, 2, 0.5, 1])[0]
        if name in ("get", "put", "append"):
            more = {} if name == "get" else {"value": chance.randint(1, 2)}
            return name, {"key": chance.choice("abcdef"), **more}
        return name, {"x": chance.randint(1, 3), "y": 2} if name == "plus" else {}


class Bank(Shape):
    """Accounts: transfers touch two at once, statements list what came in which order, an audit sees all, a letter leaves the house."""

    tools = (
        spec("balance", "read(account:{name})"),
        spec("statement", "read(account:{name})"),
        spec("deposit", "write(account:{name})"),
        spec("transfer", "write(account:{source}, account:{target})"),
        spec("compare", "read(account:{names})"),
        spec("audit", "read(account)"),
        spec("letter", "external(post)"),
        spec("letters", "read(post)"),
        spec("wire_out", "external"),
        spec("fee", "pure"),
    )
    kinds: ClassVar = {
        **dict.fromkeys(("balance", "statement", "compare", "audit", "letters"), "read"),
        **dict.fromkeys(("deposit", "transfer"), "write"),
        **dict.fromkeys(("letter", "wire_out"), "external"),
        "fee": "pure",
    }
    places: ClassVar = {
        **dict.fromkeys(("balance", "statement", "deposit"), lambda a: [("account", a["name"])]),
        "transfer": lambda a: [("account", a["source"]), ("account", a["target"])],
        "compare": lambda a: [("account", name) for name in a["names"]],
        "audit": lambda _: [("account",)],
        **dict.fromkeys(("letter", "letters"), lambda _: [("post",)]),
        "wire_out": lambda _: [()],
        "fee": lambda _: [],
    }

    def __init__(self) -> None:
        self.moves: dict[str, list[int]] = {name: [10] for name in ("ann", "bob", "cem", "dora")}
        self.journal: list[str] = []
        self.post: list[str] = []

    def _balance(self, name: str) -> int:
        return sum(self.moves[name])

    def _statement(self, name: str) -> list[int]:
        return self.moves[name]

    def _deposit(self, name: str, amount: int) -> str:
        self.moves[name].append(amount)
        self.journal.append(f"{name}+{amount}")
        return f"ok, {len(self.moves[name])} entries"

    def _transfer(self, source: str, target: str, amount: int) -> str:
        if sum(self.moves[source]) < amount:
            raise ToolError(f"{source} has only {sum(self.moves[source])}")
        self.moves[source].append(-amount)
        self.moves[target].append(amount)
        self.journal.append(f"{source}>{target}:{amount}")
        return f"{source} {sum(self.moves[source])}, {target} {sum(self.moves[target])}"

    def _compare(self, names: list[str]) -> dict[str, int]:
        return {name: sum(self.moves[name]) for name in names}

    def _audit(self) -> list[str]:
        return self.journal

    def _letter(self, text: str) -> str:
        self.post.append(text)
        return f"letter {len(self.post)} sent"

    def _letters(self) -> list[str]:
        return self.post

    def _wire_out(self, name: str) -> str:
        self.moves[name].append(-1)
        self.journal.append(f"{name} out")
        return f"sent; the bank has made {len(self.journal)} entries and {len(self.post)} letters"

    def _fee(self, amount: int) -> int:
        return amount // 10 + 1

    @staticmethod
    def draw(chance: Random) -> tuple[str, Arguments]:
        names = ["ann", "bob", "cem", "dora"]
        one, other = chance.sample(names, 2)
        options: list[tuple[float, str, Arguments]] = [
            (6, "balance", {"name": one}),
            (4, "statement", {"name": one}),
            (3, "deposit", {"name": one, "amount": chance.randint(1, 2)}),
            (3, "transfer", {"source": one, "target": other, "amount": chance.choice([1, 8])}),
            (2, "compare", {"names": sorted([one, other])}),
            (1, "audit", {}),
            (0.7, "letter", {"text": chance.choice("xy")}),
            (1, "letters", {}),
            (0.15, "wire_out", {"name": one}),
            (1, "fee", {"amount": chance.randint(1, 30)}),
        ]
        _, name, arguments = chance.choices(options, [weight for weight, _, _ in options])[0]
        return name, arguments


class Tickets(Shape):
    """A list with numbers given in turn: opening writes the list, closing one ticket, listing reads all; comments by user."""

    tools = (
        spec("open", "write(ticket)"),
        spec("close", "write(ticket:{number})"),
        spec("close_all", "write(ticket:{numbers})"),
        spec("view", "read(ticket:{number})"),
        spec("list", "read(ticket)"),
        spec("comment", "write(ticket:{ticket.number}, user:{user.id})"),
        spec("karma", "read(user:{user.id})"),
        spec("shout", "pure"),
    )
    kinds: ClassVar = {
        **dict.fromkeys(("open", "close", "close_all", "comment"), "write"),
        **dict.fromkeys(("view", "list", "karma"), "read"),
        "shout": "pure",
    }
    places: ClassVar = {
        **dict.fromkeys(("open", "list"), lambda _: [("ticket",)]),
        **dict.fromkeys(("close", "view"), lambda a: [("ticket", str(a["number"]))]),
        "close_all": lambda a: [("ticket", str(number)) for number in a["numbers"]],
        "comment": lambda a: [("ticket", str(a["ticket"]["number"])), ("user", a["user"]["id"])],
        "karma": lambda a: [("user", a["user"]["id"])],
        "shout": lambda _: [],
    }

    def __init__(self) -> None:
        self.titles = ["first", "second", "third", "fourth"]
        self.states = ["open"] * 4
        self.comments: list[list[str]] = [[], [], [], []]
        self.by_user: dict[str, int] = {}

    def _open(self, title: str) -> str:
        self.titles.append(title)
        self.states.append("open")
        self.comments.append([])
        return f"ticket {len(self.titles) - 1}"

    def _close(self, number: int) -> str:
        return self._close_all([number])

    def _close_all(self, numbers: list[int]) -> str:
        for number in numbers:
            self._known(number)
        was = [self.states[number] for number in numbers]
        for number in numbers:
            self.states[number] = "closed" if self.states[number] == "open" else "closed again"
        return f"was {', '.join(was)}"

    def _view(self, number: int) -> str:
        self._known(number)
        return f"{self.titles[number]} is {self.states[number]}: {self.comments[number]}"

    def _list(self) -> list[str]:
        return [f"{title}/{state}" for title, state in zip(self.titles, self.states, strict=True)]

    def _comment(self, ticket: Arguments, user: Arguments, text: str) -> str:
        self._known(ticket["number"])
        count = self.by_user[user["id"]] = self.by_user.get(user["id"], 0) + 1
        self.comments[ticket["number"]].append(f"{user['id']}#{count}: {text}")
        return f"comment {len(self.comments[ticket['number']])}"

    def _karma(self, user: Arguments) -> int:
        return self.by_user.get(user["id"], 0)

    def _shout(self, text: str) -> str:
        return text.upper()

    def _known(self, number: int) -> None:
        if not 0 <= number < len(self.titles):
            raise ToolError(f"no ticket {number}")

    @staticmethod
    def draw(chance: Random) -> tuple[str, Arguments]:
        number, user = chance.randrange(6), {"id": chance.choice(["u1", "u2", "u3"]), "lang": chance.choice(["en", "de"])}
        options: list[tuple[float, str, Arguments]] = [
            (0.5, "open", {"title": chance.choice("pq")}),
            (2, "close", {"number": number}),
            (1, "close_all", {"numbers": sorted(chance.sample(range(4), 2))}),
            (6, "view", {"number": number}),
            (1.5, "list", {}),
            (2, "comment", {"ticket": {"number": number}, "user": user, "text": "hm"}),
            (3, "karma", {"user": user}),
            (1, "shout", {"text": chance.choice("xyz")}),
        ]
        _, name, arguments = chance.choices(options, [weight for weight, _, _ in options])[0]
        return name, arguments


WORLDS: tuple[type[Shape], ...] = (Keys, Bank, Tickets)
