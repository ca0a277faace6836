"""The policy pack: every kind of rule, the errors of its table, and an airline's policy on 100 real runs."""

import pytest

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.verifiers.packs.policy import PolicyRules, Rule
from counterplay.verifiers.packs.policy_rules import YES, explicit_yes
from tests.verifiers.pack_shapes import ROOT, airline_runs, auroc, call, ended, say, tool, trajectory, values

LOOK, CANCEL = {"order": 17}, {"order": 17}


def reasons(state, *rules, **settings):
    return [finding.reason for finding in PolicyRules(rules=rules, **settings).findings(state)]


def test_before_a_call_there_must_be_another_that_was_answered():
    rule = Rule(on=("cancel",), requires=("look", "list"), reason="look first")
    assert reasons(trajectory(call("cancel")), rule) == ["cancel: wanted look or list before it: look first"]
    assert reasons(trajectory(call("list"), call("cancel")), rule) == []
    assert len(reasons(trajectory(call("look", {}, "Error: no"), call("cancel")), rule)) == 1, "an error shows nothing"
    assert len(reasons(trajectory(call("look", {}, None), call("cancel")), rule)) == 1, "nor does a call without an answer"
    assert len(reasons(trajectory(call("cancel"), call("look")), rule)) == 1, "too late"


def test_what_was_asked_for_in_the_same_step_was_not_known_yet():
    from counterplay.core.nouns import Message, Step, ToolCall

    both = Message.assistant(None, [ToolCall("a", "look", "{}"), ToolCall("b", "cancel", "{}")])
    state = trajectory(Step(both, (Message.tool("ok", "a"), Message.tool("ok", "b"))))
    assert len(reasons(state, Rule(on=("cancel",), requires=("look",)))) == 1


def test_rules_are_tied_to_a_resource():
    rule = Rule(on=("cancel",), requires=("look",), same=("order",))
    assert reasons(trajectory(call("look", {"order": 17}), call("cancel", {"order": 17})), rule) == []
    assert reasons(trajectory(call("look", {"order": 17}), call("cancel", {"order": "17"})), rule) == [], "as text they are equal"
    other = trajectory(call("look", {"order": 18}), call("cancel", {"order": 17}))
    assert reasons(other, rule) == ["cancel: wanted look with order=17 before it"]
    renamed = Rule(on=("cancel",), requires=("look",), same=("order",), as_=("id",))
    assert reasons(trajectory(call("look", {"id": 17}), call("cancel", {"order": 17})), renamed) == []


def test_what_was_shown_must_be_fresh_and_as_asked():
    fresh = Rule(on=("cancel",), requires=("look",), same=("order",), fresh=True)
    effects = (("look", "read(order:{order})"), ("change", "write(order:{order})"))
    look, cancel = call("look", {"order": 1}, {"status": "open", "lines": [{"kind": "gift"}]}), call("cancel", {"order": 1})
    assert reasons(trajectory(look, cancel), fresh, effects=effects) == []
    stale = reasons(trajectory(look, call("change", {"order": 1}), cancel), fresh, effects=effects)
    assert stale == ["cancel: wanted look with order=1 again after the last change"]
    assert reasons(trajectory(look, call("change", {"order": 2}), cancel), fresh, effects=effects) == []
    assert reasons(trajectory(call("change", {"order": 1}), look, cancel), fresh, effects=effects) == [], "looked at after the change"
    assert len(reasons(trajectory(look, call("ring"), cancel), fresh, effects=effects)) == 1, "an unknown effect may change everything"
    declared = [tool("ring", Effect("pure")), tool("look", Effect("read", "order:{order}"))]
    assert reasons(trajectory(look, call("ring"), cancel, tools=declared), fresh) == [], "the trajectory's own tools are read"
    shown = Rule(on=("cancel",), requires=("look",), showing={"status": ["open", "new"], "lines.kind": {"not": "gift"}})
    assert reasons(trajectory(look, cancel), shown) == ['cancel: look showed lines.kind ["gift"], wanted not gift']


def test_after_a_call_there_must_be_another_by_the_end_or_in_time():
    rule = Rule(on=("cancel",), then=("mail",), same=("order",))
    owing = trajectory(call("cancel", {"order": 1}), call("mail", {"order": 2}), say("done"))
    assert values(PolicyRules(rules=(rule,)), owing) == [1.0, 1.0, 1.0], "it may still come"
    assert reasons(ended(owing), rule) == ["cancel: wanted mail after it"]
    assert reasons(ended(trajectory(call("cancel", {"order": 1}), call("mail", {"order": 1}))), rule) == []
    assert reasons(ended(trajectory(call("mail", {"order": 1}), call("cancel", {"order": 1}))), rule) != [], "before is not after"
    assert reasons(ended(trajectory(call("cancel", {"order": 1}, "Error: no"))), rule) == [], "nothing was cancelled"
    soon = Rule(on=("cancel",), then=("mail",), within=2)
    assert reasons(trajectory(call("cancel"), say("a"), say("b")), soon) == []
    assert reasons(trajectory(call("cancel"), say("a"), say("b"), say("c")), soon) == ["cancel: wanted mail after it within 2 steps"]
    assert reasons(trajectory(call("cancel"), say("a"), call("mail"), say("c"), say("d")), soon) == []


def test_never_only_and_at_most():
    large = Rule(on=("refund*",), never=True, when={"amount": {"above": 100}})
    assert reasons(trajectory(call("refund_card", {"amount": 101})), large) == ["refund_card: it must never be called so"]
    assert reasons(trajectory(call("refund_card", {"amount": 100}), call("refund_card", {"amount": "x"})), large) == []
    only = Rule(on=("refund",), only={"to": ["card", "cash"], "note": {"missing": False}})
    assert reasons(trajectory(call("refund", {"to": "card", "note": "n"})), only) == []
    assert reasons(trajectory(call("refund", {"to": "gift", "note": "n"})), only) == ["refund: to gift, wanted card or cash"]
    assert reasons(trajectory(call("refund", {"to": "cash"})), only) == ["refund: note missing, wanted missing false"]
    once = Rule(on=("refund",), at_most=1, same=("order",))
    refunds = [call("refund", {"order": 1}, "Error: busy"), call("refund", {"order": 1}), call("refund", {"order": 2})]
    assert reasons(trajectory(*refunds), once) == [], "an error refunded nothing"
    assert reasons(trajectory(*refunds, call("refund", {"order": 1})), once) == ["refund: call 2 with order=1, wanted at most 1"]


@pytest.mark.parametrize(
    ("text", "agreed"),
    [
        ("Yes, please.", True),
        ("yes", True),
        ("Thanks! Please go ahead with option 2.", True),
        ("That works. Don't forget the bags.", True),
        ("No. Yes would be wrong", True),  # a sentence of its own says yes; who writes so is asked again
        ("No, yes men are what I hate", False),
        ("I do not confirm this", False),
        ("Before you proceed, what does it cost?", False),
        ("What about Friday?", False),
        ("Can you confirm my seat?", False),
        ("Yes, can you do it now?", True),
        ("Is that correct? I think so", False),
        ("My eyes hurt", False),
        ("Don\u2019t proceed", False),
        ("", False),
    ],
)
def test_an_explicit_yes(text, agreed):
    assert explicit_yes(text, YES) is agreed


def test_confirmation_is_the_last_word_of_the_user_on_what_was_said():
    rule = Rule(on=("cancel",), confirmed=True)
    asked = say("I will cancel order 17. Is that right?", "Yes, please.")
    assert reasons(trajectory(asked, call("cancel", CANCEL)), rule) == []
    assert reasons(trajectory(asked, call("look"), call("cancel", CANCEL)), rule) == [], "looking in between is fine"
    assert reasons(trajectory(call("cancel", CANCEL), prompt="Yes, cancel it!"), rule) == [
        "cancel: wanted the user's yes to what it does, and nobody was asked"
    ], "a yes to nothing"
    later = trajectory(asked, say("Anything else?", "What is the weather?"), call("cancel", CANCEL))
    assert reasons(later, rule) == ["cancel: wanted the user's yes, and the user said 'What is the weather?'"]
    both = trajectory(asked, call("cancel", CANCEL), call("cancel", {"order": 18}))
    assert reasons(both, rule) == []
    one = Rule(on=("cancel",), confirmed=True, once=True)
    assert reasons(both, one) == ["cancel: wanted a yes of its own: the user's last yes was used for an earlier call"]
    assert reasons(trajectory(asked, call("cancel", CANCEL), asked, call("cancel", {"order": 18})), one) == [], "two calls, two yeses"
    retried = trajectory(asked, call("cancel", CANCEL, "Error: busy"), call("cancel", CANCEL))
    assert reasons(retried, one) == [], "a call that was refused used nothing up"
    telling = Rule(on=("cancel",), confirmed=True, telling=("order",))
    assert reasons(trajectory(asked, call("cancel", CANCEL)), telling) == []
    assert reasons(trajectory(asked, call("cancel", {"order": 7})), telling) == ["cancel: wanted the user told 7 before the yes"]


def test_values_must_come_from_an_earlier_observation():
    rule = Rule(on=("pay",), seen=("cards.id",))
    pay = call("pay", {"cards": [{"id": "card_1"}, {"id": "card_12"}]})
    shown = call("profile", {}, {"cards": {"card_1": {}, "x": ["Card_12"]}})
    assert reasons(trajectory(shown, pay), rule) == []
    part = call("profile", {}, {"cards": ["card_123", "card_1"]})
    assert reasons(trajectory(part, pay), rule) == ["pay: cards.id 'card_12' was never shown by any answer of a tool"]
    told = trajectory(say("Which cards?", "card_1 and card_12"), pay)
    assert len(reasons(told, rule)) == 2, "the user is no tool"
    assert reasons(told, Rule(on=("pay",), seen=("cards.id",), seen_in=("user",))) == []
    assert len(reasons(trajectory(shown, pay), Rule(on=("pay",), seen=("cards.id",), seen_in=("bank",)))) == 2
    assert len(reasons(trajectory(call("profile", {}, "Error: card_1 card_12"), pay), rule)) == 2, "an error shows nothing"
    assert reasons(trajectory(pay, prompt="card_1, card_12"), Rule(on=("pay",), seen=("cards.id",), seen_in=("user",))) == []


def test_weights_add_up_and_the_reason_names_rule_and_step():
    pack = PolicyRules(rules=(Rule(on=("a",), never=True, weight=2.0, name="no a"), Rule(on=("b",), never=True, weight=0.5)))
    score = pack(trajectory(call("b"), call("a")))
    assert score.value == 0.5**2.5
    assert score.reason == "step 0: b: it must never be called; step 1: a: it must never be called (no a)"
    assert pack(trajectory(call("c"))).reason == "policy: no rule is broken"
    assert PolicyRules()(trajectory(call("a"))) is None


TABLE = '''
title = "shop"

[effects]
"look" = "read(order:{order})"

[[rule]]
name = "confirm"
on = "cancel"
reason = """
[[rule]] in a text
is no rule"""
confirmed = true

[[rule]]
name = "look first"
on = ["cancel", "change_*"]
requires = "look"
same = "order"
as = "id"
[rule.showing]
status = ["open"]
total = { max = 100 }
'''


def test_a_table_reads_as_its_dataclasses():
    read = PolicyRules.parse(TABLE)
    first, second = read.rules
    assert first == Rule(on=("cancel",), name="confirm", reason="[[rule]] in a text\nis no rule", confirmed=True)
    assert second.as_ == ("id",)
    assert second.showing == {"status": ["open"], "total": {"max": 100}}
    assert read == PolicyRules(rules=(first, second), effects=(("look", "read(order:{order})"),), title="shop")
    assert read.fingerprint == PolicyRules.parse(TABLE).fingerprint != PolicyRules.parse(TABLE.replace("100", "101")).fingerprint


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ('requires = "look"', 'requries = "look"', 18, r"got 'requries' in a rule; wanted one of .*Did you mean requires\?"),
        ("confirmed = true", 'confirmed = "yes"', 13, "got confirmed = 'yes'; wanted a bool"),
        ('title = "shop"', 'titel = "shop"', 2, r"got 'titel'.*Did you mean title\?"),
        ('title = "shop"', "decay = 1.5", 2, "wanted a number between 0 and 1"),
        ('"read(order:{order})"', '"reads(order)"', 5, "got effect 'reads\\(order\\)'"),
        ('on = "cancel"', "on = 3", 9, "got on = 3; wanted a name or a list of names"),
        ("max = 100", "most = 100", 15, "rule 'look first' with the test 'most'; wanted one of: is, not"),
        ("max = 100", 'max = "x"', 15, "max = 'x'; wanted a number"),
        ("confirmed = true", "", 7, "rule 'confirm', which asks for nothing"),
        ('on = ["cancel", "change_*"]', "", 15, "rule 'look first' without `on`"),
        ("confirmed = true", "confirmed = ", 13, "Invalid value .at line 13"),
        ('status = ["open"]', 'status = { pattern = "(" }', 15, "with pattern '\\('"),
    ],
)
def test_errors_in_the_table_name_the_line(old, new, line, text):
    with pytest.raises(UserError, match=rf"(?s)shop\.toml.*line {line}.*{text}" if "at line" not in text else text):
        PolicyRules.parse(TABLE.replace(old, new), "shop.toml")


def test_a_policy_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml, which can't be read"):
        PolicyRules.from_toml(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(UserError, match="got no rule"):
        PolicyRules.from_toml(tmp_path / "empty.toml")


def test_a_rule_that_makes_no_sense_is_refused():
    for settings, text in [
        ({"on": "cancel", "never": True}, "a tuple of names"),
        ({"on": ("a",), "fresh": True, "never": True}, "without `requires`"),
        ({"on": ("a",), "within": 2, "never": True}, "without `then`"),
        ({"on": ("a",), "once": True, "never": True}, "without `confirmed`"),
        ({"on": ("a",), "requires": ("b",), "same": ("x", "y"), "as_": ("z",)}, "one for each"),
        ({"on": ("a",), "never": True, "weight": 0}, "not positive"),
    ]:
        with pytest.raises(UserError, match=text):
            Rule(**settings)


def test_the_airline_s_policy_on_real_runs():
    """Measured: AUROC 0.55, for most failures break no rule that can be seen; of the 19 runs that break one, 12 failed."""
    pack = PolicyRules.from_toml(ROOT / "examples/packs/airline.toml")
    scored = [(pack(state), success) for state, success in airline_runs()]
    assert 0.53 < auroc([(score.value, success) for score, success in scored]) < 0.6
    broken = [success for score, success in scored if score.value < 1]
    assert broken.count(False) > broken.count(True)
    assert any("list what will be done and get an explicit yes first" in score.reason for score, _ in scored)


def test_rules_about_tools_that_nobody_has_are_named():
    right = Rule(on=("can*",), requires=("look",), seen=("order",), seen_in=("user", "look"))
    typo, late = Rule(on=("refnud",), never=True, name="confirm"), Rule(on=("cancel", "cancle"), requires=("lok",), name="look first")
    declared, called = trajectory(tools=[tool("look", Effect("read"))]), trajectory(call("cancel"))
    policy = PolicyRules(rules=(right, typo, late), title="shop")
    never, others = policy.notes([declared, called])
    assert never == "policy:shop: these rules never applied, for no tool of these runs is called so: confirm (refnud)"
    assert "cancle (`on` of look first)" in others
    assert "lok (`requires` of look first)" in others
    assert "rule 1" not in never + others
    assert PolicyRules(rules=(right,)).notes([declared, called]) == []
    assert "look (`requires` of rule 1)" in PolicyRules(rules=(right,)).notes([called])[0]


def test_two_policies_are_told_apart(tmp_path):
    text = """[[rule]]\non = "refund"\nnever = true\n"""
    for name, more in (("airline", ""), ("shop", ""), ("copy", 'reason = "so"\n')):
        (tmp_path / f"{name}.toml").write_text(text + more)
    airline, shop = (PolicyRules.from_toml(tmp_path / f"{name}.toml") for name in ("airline", "shop"))
    assert (airline.name, shop.name, PolicyRules().name) == ("policy:airline", "policy:shop", "policy")
    assert airline(trajectory(call("x"))).verifier == "policy:airline"
    assert airline.version == shop.version
    assert PolicyRules.from_toml(tmp_path / "copy.toml").version != airline.version
