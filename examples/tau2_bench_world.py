"""sierra-research's tau2-bench as a world: its own domains and evaluators, and the user of a log (none in solo runs).

With tau2 or the `src` of a checkout on PYTHONPATH (TAU2_DATA_DIR names its data), and runs of it ingested:
    counterplay replay --environment counterplay.examples.tau2_bench_world:Tau2Bench --check
"""

import math
from importlib import import_module
from typing import Any

from counterplay.replay.logged_world import Effect, LoggedWorld, Mapping, Message, ToolSpec, Trace, copied, environment_fingerprint

EFFECTS = {"read": Effect("read"), "write": Effect("write"), "think": Effect("pure"), "generic": Effect("pure")}  # as tau2 marks its tools
DONE = ToolSpec.function("done", "Call this function when you are done with the task.", {}, Effect("write"))


class Tau2Bench(LoggedWorld):
    """One simulation, whose domain and task the trace holds. `reward` is None where a language model would have to judge."""

    stops = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        domain, self.solo = (trace.task or "").split("/")[1], trace.agent == "llm_agent_solo"
        self.make = import_module(f"tau2.domains.{domain}.environment").get_environment
        self.types, tasks = import_module("tau2.data_model.message"), import_module("tau2.data_model.tasks")
        self.task = tasks.Task(**trace.metadata["task"])
        self.env, self.said = self.make(solo_mode=self.solo), list[Any]()
        if (start := self.task.initial_state) is not None:
            self.env.set_state(start.initialization_data, start.initialization_actions, start.message_history or [])
        kits = [kit for kit in (self.env.tools, self.env.user_tools if self.solo else None) if kit is not None]
        found = [(tool.openai_schema, kit.tool_type(name).value) for kit in kits for name, tool in kit.get_tools().items()]
        self.tools = [ToolSpec.from_openai(schema, EFFECTS[kind]) for schema, kind in found] + [DONE] * self.solo
        parts, sources = (f"tau2.domains.{domain}", "tau2.environment"), {name: tool for kit in kits for name, tool in kit.tools.items()}
        self.environment = environment_fingerprint(self, packages=parts, data={domain: self.env.get_db_hash}, sources=sources)

    def copy(self) -> "Tau2Bench":
        return copied(self, "env", "said")

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        call = self.types.ToolCall(id=str(len(self.said)), name=name, arguments=dict(arguments))
        self.done = self.solo and name == "done"
        if not self.done:
            self.said += [self.types.AssistantMessage(role="assistant", tool_calls=[call]), self.env.get_response(call)]
        return "" if self.done else str(self.said[-1].content)

    def reply(self, action: Message) -> list[Message]:
        self.said.append(self.types.AssistantMessage(role="assistant", content=action.content_text))
        return [*super().reply(action)]

    @property
    def reward(self) -> float | None:
        """The product of the parts that the task pays for, each by the evaluator of its name."""
        paid, parts = self.task.evaluation_criteria.reward_basis, dict[Any, float]()
        for kind, first in {"Environment": [self.make], "Action": [], "Communicate": []}.items():
            module = import_module(f"tau2.evaluator.evaluator_{'env' if first else kind.lower()}")
            found = getattr(module, f"{kind}Evaluator").calculate_reward(*first, self.task, self.said, *[self.solo for _ in first])
            parts |= found.reward_breakdown or {}
        return None if any(part.value == "NL_ASSERTION" for part in paid) else math.prod(parts.get(part, 1.0) for part in paid)
