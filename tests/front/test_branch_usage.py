"""Tokens by branch: what the requests on its path used, and what of that came from the server's cache."""

from __future__ import annotations

from counterplay.branch_usage import BranchUsage, TalliedPolicy, branch_usages, usage_config
from counterplay.core.budget import Budget
from counterplay.core.journal import JournaledPolicy, MemoryJournal
from counterplay.core.nouns import Usage
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.search.best_of_n import best_of_n
from tests.replay.loopback import Loopback, completion
from tests.replay.shelf import SnapshotShelf

CALLS = [[("call_aaaaaaaa1", "put", '{"name":"a"}')], [("call_aaaaaaaa2", "total", "{}")], [("call_aaaaaaaa3", "finish", "{}")]]


def answers(request):
    """Three steps to the end; the whole of an earlier request is cached."""
    number = sum(message["role"] == "assistant" for message in request["messages"])
    body = completion(None, calls=CALLS[number] if number or request["seed"] % 2 else CALLS[2])
    body["usage"] = {
        "prompt_tokens": 100 * (number + 1),
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 100 * number},
    }
    return body


def earned(trajectory):
    return trajectory.steps[-1].reward if trajectory.finished else None


async def test_a_branch_pays_for_the_requests_on_its_path_and_a_resumed_search_tells_the_same():
    journal = MemoryJournal()
    configs = []
    with Loopback(default=answers) as server:
        for _ in range(2):
            async with OpenAIPolicy("m", base_url=server.base_url, n_support="never") as policy:
                tallied = TalliedPolicy(JournaledPolicy(policy, journal))
                environment = LiveEnvironment(SnapshotShelf)
                tree = await best_of_n(await environment.initial(), tallied, environment, earned, Budget.of(tokens=10**6), n=6)
            configs.append(usage_config(tree, tallied.by_state))
        assert server.served["calls"] == len(server.requests)
        live = server.served["calls"]
    rows = branch_usages(tree, tallied.by_state)
    assert {len(tree.nodes[row.leaf].path()) for row in rows} == {2, 4}
    for row in rows:
        path = tree.nodes[row.leaf].path()
        draws = [sum(child.draws for child in node.children) for node in path[:-1]]
        assert row.usage.input_tokens == sum(100 * (depth + 1) * drawn for depth, drawn in enumerate(draws))
        assert row.usage.cached_tokens == sum(100 * depth * drawn for depth, drawn in enumerate(draws))
        assert row.cached_share == row.usage.cached_tokens / row.usage.input_tokens
    assert configs[0] == configs[1]
    assert configs[0]["input_tokens"] == server.served["prompt_tokens"]
    assert configs[0]["output_tokens"] == 5 * live
    assert tree.used.tokens == configs[0]["input_tokens"] + configs[0]["output_tokens"]
    assert configs[0]["branches"] == [[r.leaf, r.usage.input_tokens, r.usage.cached_tokens, r.usage.output_tokens] for r in rows]


def test_without_input_there_is_no_share():
    assert BranchUsage(0, Usage()).cached_share is None
