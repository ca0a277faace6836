"""Trees of one fork with several played-out branches."""

from counterplay.core.nouns import Grade, Score, Step
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import SearchTree


def fork(kit, *, good=1, bad=1, longer=0, task="t1", grade=Grade.EXECUTED, sampled=True):
    """A fork after the look-up: `good` branches refund rightly, `bad` wrongly, each saying so at its end.

    With `longer`, each good branch after the first looks the order up so many times more before it refunds.
    """
    tree = SearchTree.start(kit.trajectory(task).prefix(1), "fork_best_of_n", {"verifier": "ledger"})

    def branch(amount, score, looks):
        node = tree.root
        for i in range(looks):
            node = tree.add(node, kit.step(kit.call("find", f"l{i}", order=100 * amount + i), "found", grade=grade, call_id=f"l{i}"))
        node = tree.add(node, kit.step(kit.call("refund", "r", order=7, amount=amount), "ok", grade=grade, call_id="r", sampled=sampled))
        leaf = tree.add(node, Step(kit.say(f"Refunded {amount}."), terminated=True, sampled=sampled))
        leaf.score = Score(score, "books", "ledger", "2")
        leaf.backup(score)

    for i in range(good):
        branch(5 + i, 1.0, longer * i)
    for i in range(bad):
        branch(50 + i, 0.0, 0)
    return SourcedTree(tree, search=f"s-{task}", task=task)
