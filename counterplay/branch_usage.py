"""What each branch of a search cost in tokens, and how much of that the server read from its prompt cache.

A branch pays for the requests on its path: those made in each of its states. Branches that share a prefix share its requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterplay.core.nouns import Proposal, State, Usage
from counterplay.core.protocols import Policy, fingerprint_of
from counterplay.search.tree import Node, SearchTree


class TalliedPolicy:
    """Passes everything on and adds up what was used in each state. `by_state` holds it by state key,
    `by_model` how many proposals each model made, and what they used.

    Answers from a journal count as they did when they were made, so that a resumed search tells the same.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.fingerprint = policy, fingerprint_of(policy)
        self.by_state: dict[str, Usage] = {}
        self.by_model: dict[str, tuple[int, Usage]] = {}

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        proposals = await self.policy.propose(state, n)
        for proposal in proposals:
            self.by_state[state.key] = self.by_state.get(state.key, Usage()) + proposal.usage
            calls, used = self.by_model.get(proposal.model, (0, Usage()))
            self.by_model[proposal.model] = calls + 1, used + proposal.usage
        return proposals


@dataclass(frozen=True, slots=True)
class BranchUsage:
    """`leaf` is the index of the branch's last node, `usage` what all requests on its path used."""

    leaf: int
    usage: Usage

    @property
    def cached_share(self) -> float | None:
        """How much of the input came from the server's cache, in [0, 1]; None where there was no input."""
        return self.usage.cached_tokens / self.usage.input_tokens if self.usage.input_tokens else None


def branch_usages(tree: SearchTree, by_state: Mapping[str, Usage]) -> list[BranchUsage]:
    """One row a leaf, in the order of the nodes."""
    sums: dict[int, Usage] = {}
    for node in tree.nodes:
        above = Usage() if node.parent is None else sums[node.parent.index]
        sums[node.index] = above + by_state.get(node.state.key, Usage())
    return [BranchUsage(leaf.index, sums[leaf.index]) for leaf in tree.leaves()]


def usage_config(tree: SearchTree, by_state: Mapping[str, Usage]) -> dict[str, Any]:
    """The tally as part of a tree's config: totals, and `[leaf, input, cached, output]` of each branch."""
    whole = sum((by_state.get(node.state.key, Usage()) for node in _by_state(tree)), Usage())
    rows = [[row.leaf, row.usage.input_tokens, row.usage.cached_tokens, row.usage.output_tokens] for row in branch_usages(tree, by_state)]
    return {
        "input_tokens": whole.input_tokens,
        "cached_tokens": whole.cached_tokens,
        "output_tokens": whole.output_tokens,
        "branches": rows,
    }


def models_config(by_model: Mapping[str, tuple[int, Usage]]) -> dict[str, list[int]]:
    """`[calls, input, output, cached]` by model, as part of a tree's config. No dollars: their sum would depend on the order."""
    rows = {model: [calls, used.input_tokens, used.output_tokens, used.cached_tokens] for model, (calls, used) in by_model.items()}
    return dict(sorted(rows.items()))


def _by_state(tree: SearchTree) -> list[Node]:
    """One node for each state."""
    return list({node.state.key: node for node in tree.nodes}.values())
