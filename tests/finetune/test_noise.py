"""The share of wrong labels, found in the labels: right on pairs that follow a rule, silent on pairs that follow none."""

import json
from random import Random

import numpy as np
import pytest

from counterplay.finetune.noise import margins, noise_of, saturation


def record(i, chosen, rejected, *, task=None, probability=0.95, before="look_up"):
    def side(name, arguments):
        call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]

    prompt = [{"role": "user", "content": f"task {i}"}, *side(before, {})]
    own = {"task": f"t{i}" if task is None else task, "traces": [], "name": f"r{i}"}
    return {"prompt": prompt, "chosen": side(*chosen), "rejected": side(*rejected), "probability": probability, **own}


def ruled(count, wrong, seed=0, rules=24):
    """Pairs in which one of some rules, common and rare ones, says what is better; a share `wrong` is turned round, and returned too."""
    rng = Random(seed)
    records, turned = [], 0
    for i in range(count):
        rule = int(rules * rng.random() ** 3)
        sides = [("post", {"account": f"right{rule}", "amount": rng.randrange(999)}), (f"tool{rule}", {"amount": rng.randrange(999)})]
        if rng.random() < wrong:
            sides.reverse()
            turned += 1
        records.append(record(i, *sides))
    return records, turned / count


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.2, 0.3])
def test_the_estimate_is_within_five_points_and_its_interval_holds_the_truth(wrong):
    inside = 0
    for seed in range(3):
        records, truth = ruled(600, wrong, seed)
        noise = noise_of(records)
        assert noise.how == "agreement"
        assert noise.share == pytest.approx(truth, abs=0.05)
        inside += noise.interval[0] <= truth <= noise.interval[1]
    assert inside >= 2


def test_the_posterior_speaks_where_the_labels_can_not():
    rng = Random(1)
    random = [
        record(i, (f"tool{rng.randrange(9)}", {"x": rng.randrange(9)}), (f"tool{rng.randrange(9)}", {"x": rng.randrange(9)}))
        for i in range(400)
    ]
    noise = noise_of(random)
    assert (noise.how, noise.interval) == ("posterior", None)
    assert noise.share == pytest.approx(0.05)
    few = noise_of(ruled(20, 0.2)[0])
    assert (few.how, few.pairs) == ("posterior", 20)
    assert noise_of([]).share == 0.0


def test_it_is_the_same_every_time_and_no_pair_of_a_task_helps_to_judge_another():
    records, _ = ruled(200, 0.2)
    assert noise_of(records) == noise_of(list(records))
    one_task = [{**each, "task": "all"} for each in records]
    assert not margins(one_task).any(), "there is nothing to learn from outside of the only task"
    assert noise_of(one_task).how == "posterior"


def test_text_answers_are_judged_by_their_words():
    rng = Random(0)
    records = []
    for i in range(300):
        good, bad = (f"{word} your order {rng.randrange(999)} is on its way" for word in ("sorry", "whatever"))
        sides = [good, bad] if rng.random() > 0.2 else [bad, good]
        chosen, rejected = ([{"role": "assistant", "content": text}, {"role": "user", "content": "ok"}] for text in sides)
        records.append({**record(i, ("a", {}), ("b", {})), "chosen": chosen, "rejected": rejected})
    assert noise_of(records).share == pytest.approx(0.2, abs=0.05)


def test_what_was_called_before_tells_rules_apart():
    rng = Random(0)
    records = []
    for i in range(400):
        before = rng.choice(["invoice", "credit_note"])
        sides = [("debit", {}), ("credit", {})] if before == "invoice" else [("credit", {}), ("debit", {})]
        if rng.random() < 0.2:
            sides.reverse()
        records.append(record(i, *sides, before=before))
    assert noise_of(records).share == pytest.approx(0.2, abs=0.05)


def test_pairs_that_follow_no_rule_are_not_taken_for_wrong_ones():
    shares, disagreements = [], []
    for seed in range(3):
        rng, (records, _) = Random(seed), ruled(600, 0.2, seed)
        for i in range(0, 600, 5):
            records[i] = record(i, *((f"misc{rng.randrange(40)}", {"x": rng.randrange(99)}) for _ in range(2)))
        noise = noise_of(records)
        assert noise.interval[0] <= 0.2 <= noise.interval[1]
        shares.append(noise.share)
        disagreements.append((margins(records) < 0).mean())
    assert np.mean(shares) == pytest.approx(0.2, abs=0.03)
    assert np.mean(disagreements) > 0.23, "which is what counting them would say"


def test_saturation_reads_margins_on_any_scale():
    rng = np.random.default_rng(0)
    margin = np.abs(rng.normal(3, 2, 4000))
    right = rng.random(4000) < 1 / (1 + np.exp(-margin))
    agrees = np.where(right ^ (rng.random(4000) < 0.15), margin, -margin)
    for scale in (1e-3, 1.0, 1e3):
        share, low, high = saturation(agrees * scale)
        assert share == pytest.approx(0.15, abs=0.03)
        assert low <= 0.15 <= high
        assert high - low < 0.1
    disagreement = float((agrees < 0).mean())
    assert disagreement > 0.2, "counting disagreements takes what the model does not know for wrong labels"
    low, high = saturation(np.zeros(50))[1:]
    assert high - low > 0.4, "margins of 0 tell nothing"


def test_records_written_to_disk_and_rows_of_a_store_are_read_alike(tmp_path, kit):
    from counterplay.finetune.pairs import dpo_rows
    from counterplay.finetune.write import read_dataset, write_dataset

    write_dataset(dpo_rows([kit.tree()]), tmp_path / "d", split={"train": 1.0})
    _, records = read_dataset(tmp_path / "d")
    assert noise_of(records).share == pytest.approx(1 - records[0]["probability"])
    assert json.dumps(records[0]["chosen"])
