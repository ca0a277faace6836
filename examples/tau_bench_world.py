"""sierra-research's tau-bench as a world: its own tools, data and reward, and the user of a log.

With tau_bench or a checkout of it on PYTHONPATH, and runs of it ingested:
    counterplay replay --environment counterplay.examples.tau_bench_world:TauBench --check
"""

import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from counterplay.replay.logged_world import Effect, LoggedWorld, Mapping, Message, ToolSpec, Trace, environment_fingerprint

USER, RESERVATION = "user:{user_id}", "reservation:{reservation_id}"
# The airline's tools. A change is paid for by a user that the call does not name, a booking has a new id; flights never change.
EFFECTS = {
    **dict.fromkeys(("calculate", "list_all_airports", "think"), Effect("pure")),
    **dict.fromkeys(("search_direct_flight", "search_onestop_flight"), Effect("read", "flights")),
    "get_user_details": Effect("read", USER),
    "get_reservation_details": Effect("read", RESERVATION),
    **dict.fromkeys(("cancel_reservation", "update_reservation_passengers"), Effect("write", RESERVATION)),
    **dict.fromkeys(("update_reservation_flights", "update_reservation_baggages"), Effect("write", f"{RESERVATION}, user")),
    "book_reservation": Effect("write", f"{USER}, reservation"),
    "send_certificate": Effect("write", USER),
    "transfer_to_human_agents": Effect("write", "conversation"),
}


class TauBench(LoggedWorld):
    """One conversation about a task of the test split, such as `airline/0`. Tools that are not in the table write to everything.

    Executing a prefix again takes some 30 ms, most of it for loading data, and copying the data takes longer: it has no `copy`.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        domain, _, index = (trace.task or "").partition("/")
        # Its simulated users need litellm, which can't be installed beside openai 3. The user of a log needs none.
        sys.modules.setdefault("litellm", SimpleNamespace(completion=None))  # type: ignore[arg-type]
        envs = import_module(f"tau_bench.envs.{domain}")
        self.env: Any = getattr(envs, f"Mock{domain.title()}DomainEnv")(user_strategy="human", task_index=int(index))
        self.env.user = SimpleNamespace(step=self.user.hear, get_total_cost=lambda: 0.0)
        self.tools = [ToolSpec.from_openai(info, EFFECTS.get(info["function"]["name"], Effect("write"))) for info in self.env.tools_info]
        self.reward = 0.0
        parts, data = (f"tau_bench.envs.{domain}", "tau_bench.envs.base"), {domain: sys.modules[f"{envs.__name__}.data"].FOLDER_PATH}
        self.environment = environment_fingerprint(self, packages=parts, data=data, sources=self.env.tools_map)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        answer = self.env.step(sys.modules["tau_bench.types"].Action(name=name, kwargs=dict(arguments)))
        self.done, self.reward = answer.done, float(answer.reward)
        return str(answer.observation)

    def reply(self, action: Message) -> list[Message]:
        return [Message.user(self.call("respond", {"content": action.content_text}))]
