"""BFCL multi-turn (ShishirPatil/gorilla) as a world: its own Python tools, its own checker, and the user turns of a log.

With bfcl_eval or `berkeley-function-call-leaderboard` of a checkout on PYTHONPATH, and results ingested:
    counterplay replay --environment counterplay.examples.bfcl_world:Bfcl --check
"""

import inspect
import json
from importlib import import_module, resources
from typing import Any
from uuid import uuid4

from counterplay.replay.logged_world import Effect, LoggedWorld, Mapping, Message, ToolSpec, Trace, copied, environment_fingerprint

READS = {"pwd", "ls", "cat", "find", "grep", "wc", "tail", "diff", "du", "sort", "get_tweet", "get_ticket", "get_stock_info"}
EVALUATION = "bfcl_eval.eval_checker.multi_turn_eval"


class Bfcl(LoggedWorld):
    """One entry, such as `multi_turn_base_0`; each class of its tools is a resource."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        config, case = import_module("bfcl_eval.constants.executable_backend_config"), self.row("data")
        self.turns: list[list[list[str]]] = [[]]
        self.classes = {name: getattr(import_module(config.CLASS_FILE_PATH_MAPPING[name]), name)() for name in case["involved_classes"]}
        for name in self.classes.keys() - set(config.STATELESS_CLASSES):
            self.classes[name]._load_scenario(case["initial_config"].get(name, {}), "long_context" in case["id"])  # noqa: SLF001
        self.owner = {n: c for c, each in self.classes.items() for n, _ in inspect.getmembers(each, inspect.ismethod) if n[0] != "_"}
        shown = {name: ToolSpec.function(name, "", {}) for name in self.owner} | {tool.name: tool for tool in trace.trajectory.tools}
        self.tools = [ToolSpec(shown[n].wire, Effect("read" if n in READS else "write", owner)) for n, owner in self.owner.items()]
        sources = {name: getattr(type(self.classes[owner]), name) for name, owner in self.owner.items()}
        self.environment = environment_fingerprint(self, packages=[f"{EVALUATION}.func_source_code"], sources=sources)

    def row(self, folder: str) -> dict[str, Any]:
        file = resources.files("bfcl_eval").joinpath(folder, f"BFCL_v4_{(self.trace.task or '').rpartition('_')[0]}.json")
        return next(row for line in file.read_text("utf-8").splitlines() if (row := json.loads(line))["id"] == self.trace.task)

    def copy(self) -> "Bfcl":
        return copied(self, "classes", "turns")

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        self.turns[-1].append([f"{name}({','.join(f'{key}={value!r}' for key, value in arguments.items())})"])
        try:
            result = getattr(self.classes[self.owner[name]], name)(**arguments)
        except Exception as error:  # noqa: BLE001  BFCL shows the agent every one
            return f"Error during execution: {error}"
        return json.dumps(result) if isinstance(result, dict) else str(result)

    def reply(self, action: Message) -> list[Message]:
        turns = [step.observations for step in self.trace.trajectory.steps if not step.action.tool_calls]
        self.turns.append([])
        return list(turns[len(self.turns) - 2]) if len(self.turns) - 2 < len(turns) else []

    @property
    def reward(self) -> float:
        truth, checker = self.row("data/possible_answer")["ground_truth"], import_module(f"{EVALUATION}.multi_turn_checker")
        turns = [*self.turns, *([[]] * len(truth))]
        return float(checker.multi_turn_checker(turns, truth, self.row("data"), "", f"counterplay_{uuid4().hex}")["valid"])
