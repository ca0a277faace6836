"""A search tree as text for a person: where it forked, what came of each branch, what is contested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterplay.search import counts
from counterplay.search.draw import to_dict, to_dot, to_json
from counterplay.search.reading import CONTESTED, Contest, action_of, best_path, clipped, contest, contested, name_of, visible
from counterplay.search.tree import Node, SearchTree

__all__ = ["to_dict", "to_dot", "to_json", "to_text"]

_LEGEND = "* logged  + best  . end  ! failed"
_COLUMNS = f"{'N':>5} {'Q':>5} {'prior':>5} {'score':>5} {'P(best)':>7}"
_CONTESTS = 5


@dataclass(frozen=True, slots=True)
class _View:
    children: dict[int, list[Node]]
    hidden: dict[int, int]
    best: frozenset[int]
    played: Mapping[int, tuple[int, float]]
    fold: bool
    width: int


def to_text(tree: SearchTree, *, max_depth: int | None = None, max_children: int | None = None, fold: bool = True, width: int = 120) -> str:
    """One line a node: its step, its action, N, Q, prior and score; children come most visited first and are indented at forks.

    Marks: `*` logged, `+` on the best path, `.` an end, `!` a failed branch. The best child of a fork has P(Q > Q of the next best), with
    `?` where that is below 0.9. `fold` puts steps without alternatives on one line, with N, Q and prior of the first and the score of the
    last. `max_depth` counts steps below the root, `max_children` keeps the most visited children of a node, the logged and the best
    one always; None shows all. No line is longer than `width` characters (at least 60). Above the tree stands what became of it, below
    it the most visited contested forks.
    """
    seen = list(visible(tree, max_depth, max_children))
    view = _View(
        {node.index: children for node, children, _ in seen},
        {node.index: hidden for node, _, hidden in seen},
        frozenset(node.index for node in best_path(tree)),
        counts.lines(tree),
        fold,
        max(60, width),
    )
    columns = f"{_LEGEND:{view.width - len(_COLUMNS)}}{_COLUMNS}"
    lines = [*_head(tree), columns, *_body(tree.root, view), *_contests(contested(tree))]
    return "\n".join(_cut(line, view.width) for line in lines)


def _head(tree: SearchTree) -> list[str]:
    ends = {"best": tree.best(), "logged": next((node for node in reversed(tree.nodes) if node.logged), None)}
    said = [f"{name}: {_end(node)}" for name, node in ends.items() if node is not None]
    calls = f", {tree.used.model_calls:g} model calls" if tree.used.model_calls else ""
    return [f"{tree.algorithm or 'tree'}: {len(tree.nodes)} nodes{calls}, {tree.stopped or 'running'}", *said]


def _end(node: Node) -> str:
    score = "no score" if node.score is None else f"score {node.score.value:.2f}"
    return f"{len(node.state)} steps, {score}" + (f" ({node.score.reason})" if node.score and node.score.reason else "")


def _body(root: Node, view: _View) -> list[str]:
    lines = []
    stack: list[tuple[Node, int, Contest | None]] = [(root, 0, None)]
    while stack:
        node, indent, made = stack.pop()
        chain = _chain(node, view)
        lines.append(_line(chain, indent, made, view))
        last = chain[-1]
        if view.hidden[last.index]:
            lines.append(f"{'':{2 * indent + 10}}... {view.hidden[last.index]} node{'s' * (view.hidden[last.index] > 1)} more")
        children = view.children[last.index]
        made = contest(last, view.played) if len(last.children) > 1 else None
        deeper = indent + (len(last.children) > 1)
        stack.extend((child, deeper, made if made and child is made.leader else None) for child in reversed(children))
    return lines


def _chain(node: Node, view: _View) -> list[Node]:
    """The node and what follows it without an alternative, where that is folded. The root stands alone."""
    chain = [node]
    while view.fold and node.parent is not None and len(chain[-1].children) == 1 == len(view.children[chain[-1].index]):
        child = chain[-1].children[0]
        if child.logged != node.logged:
            break
        chain.append(child)
    return chain


def _line(chain: Sequence[Node], indent: int, made: Contest | None, view: _View) -> str:
    first, last = chain[0], chain[-1]
    failed = last.step is not None and last.step.error is not None
    marks = ("*" if first.logged else " ") + ("+" if first.index in view.best else " ") + ("!" if failed else "." if last.finished else " ")
    where = "" if first.step is None else f"{len(first.state) - 1}" + (f"-{len(last.state) - 1}" if last is not first else "")
    left = f"{marks} {where:>6} {'  ' * indent}"
    room = max(12, view.width - len(left) - len(_COLUMNS) - 1)
    return f"{left}{_said(chain, room):{room}} {_columns(first, last, made)}"


def _columns(first: Node, last: Node, made: Contest | None) -> str:
    value = "" if first.value is None else f"{first.value:.2f}"
    prior = "" if first.parent is None else f"{first.prior:.2f}"
    score = "" if last.score is None else f"{last.score.value:.2f}"
    better = "" if made is None else f"{made.probability:.2f}{'?' if made.probability < CONTESTED else ' '}"
    return f"{first.visits:>5} {value:>5} {prior:>5} {score:>5} {better:>7}"


def _said(chain: Sequence[Node], room: int) -> str:
    """The first action in full, then the names of the others, as far as there is room."""
    rest = [name_of(node) for node in chain[1:]]
    if not rest:
        return clipped(action_of(chain[0]), room)
    tail = " > " + " > ".join(rest)
    if len(tail) > room // 2:
        tail = f" > {rest[0]} > .. > {rest[-1]}" if len(rest) > 2 else tail
    if len(tail) > room // 2:
        tail = f" > {len(rest)} more"
    return clipped(action_of(chain[0]), room - len(tail)) + tail


def _contests(contests: Sequence[Contest]) -> list[str]:
    if not contests:
        return []
    lines = [f"contested, where the better action is not known with {CONTESTED:.0%}: {len(contests)}"]
    for made in contests[:_CONTESTS]:
        both = zip((made.leader, made.rival), made.counts, strict=True)
        pair = " or ".join(f"{clipped(action_of(node), 60)} ({won:g}/{played})" for node, (played, won) in both)
        lines.append(f"  step {len(made.parent.state)}: {made.probability:.2f} {pair}")
    return lines


def _cut(line: str, width: int) -> str:
    """A line without trailing space, cut at `width` characters."""
    line = line.rstrip()
    return line if len(line) <= width else line[: width - 1] + "…"
