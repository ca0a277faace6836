"""Which messages are held, without a look at all of them.

Ids run on along a path: the parent of most nodes is the one before it. Those few of which it is not, the branches, are kept by key in a
table of the connection's own; every other node that is held is where the one before it says. A node is held only if its parent is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from duckdb import DuckDBPyConnection

from counterplay.core.store.tables import Incoming, hex_key, within

_TABLE = "branch"
_FROM_NODES = f"""CREATE TEMP TABLE IF NOT EXISTS {_TABLE} AS
    SELECT key, id FROM (SELECT key, id, parent, lag(id) OVER () AS before FROM node)
    WHERE parent <> id - 1 OR before IS DISTINCT FROM parent"""  # noqa: S608  names of our own


def held(connection: DuckDBPyConnection, parents: Mapping[str, str]) -> dict[str, int]:
    """The ids of the nodes that are held, by key. `parents` maps keys to the key that each follows, which comes before it."""
    places = _places(parents, _branches(connection, parents))
    if not places:
        return {}
    ids = sorted(set(places.values()))
    query = f"SELECT id, {hex_key('key')} FROM node WHERE {within('id', ids)}"  # noqa: S608  names of our own
    found = dict(connection.execute(query, [ids]).fetchall())
    return {key: place for key, place in places.items() if found.get(place) == key}


def remember(connection: DuckDBPyConnection, keys: Sequence[str], ids: Sequence[int], parents: Sequence[int]) -> None:
    """Take note of nodes that were written one after another."""
    new = [at for at, (node, parent) in enumerate(zip(ids, parents, strict=True)) if not at or parent != node - 1]
    if new:
        with Incoming(connection, {"key": [keys[at] for at in new], "id": [ids[at] for at in new]}) as incoming:
            connection.execute(f"INSERT INTO {_TABLE} SELECT key::UUID, id FROM {incoming}")  # noqa: S608  names of our own


def _branches(connection: DuckDBPyConnection, keys: Mapping[str, str]) -> dict[str, int]:
    connection.execute(_FROM_NODES)
    with Incoming(connection, {"key": list(keys)}) as incoming:
        query = f"SELECT {hex_key('b.key')}, b.id FROM {_TABLE} b JOIN {incoming} i ON b.key = i.key::UUID"  # noqa: S608
        return dict(connection.execute(query).fetchall())


def _places(parents: Mapping[str, str], branches: Mapping[str, int]) -> dict[str, int]:
    """Where each key is if it is held at all."""
    places: dict[str, int] = {}
    for key, parent in parents.items():
        place = branches.get(key)
        if place is None and parent in places:
            place = places[parent] + 1
        if place is not None:
            places[key] = place
    return places
