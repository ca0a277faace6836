"""Small packages with the module names, classes and signatures of the public benchmarks, written into a folder by the tests.

They are our own: a shop's counter where the benchmarks have airlines and phones. What they share with the real ones is the interface.
"""

import json
import textwrap


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in [path.parent, *path.parent.parents]:
            if parent == folder:
                break
            (parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return folder


def tau_bench(folder, region="province"):
    """`region` is what the address's field is called: benchmarks rename such things from version to version."""
    users = {"ann_1": {"name": "Ann", region: "TX", "points": 5}, "bob_2": {"name": "Bob", region: "MA", "points": 0}}
    return write(folder, {
        "tau_bench/types.py": """
            from pydantic import BaseModel

            class Action(BaseModel):
                name: str
                kwargs: dict
            """,
        "tau_bench/envs/user.py": """
            from litellm import completion

            def load_user(strategy):
                assert strategy == "human"
            """,
        "tau_bench/envs/base.py": """
            from types import SimpleNamespace

            from tau_bench.envs.user import load_user
            from tau_bench.types import Action

            class Env:
                def __init__(self, load, tools, wanted, user_strategy="llm", task_split="test", task_index=None):
                    self.data_load_func, self.data, self.wanted = load, load(), wanted[task_index]
                    self.tools_map = {tool.get_info()["function"]["name"]: tool for tool in tools}
                    self.tools_info = [tool.get_info() for tool in tools]
                    self.terminate_tools = []
                    self.user = load_user(user_strategy)

                def step(self, action):
                    if action.name == "respond":
                        observation = self.user.step(action.kwargs["content"])
                        done = "###STOP###" in observation
                    else:
                        try:
                            observation = self.tools_map[action.name].invoke(data=self.data, **action.kwargs)
                        except Exception as error:
                            observation = f"Error: {error}"
                        done = action.name in self.terminate_tools
                    reward = float(self.data["users"] == self.wanted) if done else 0
                    return SimpleNamespace(observation=observation, reward=reward, done=done)
            """,
        "tau_bench/envs/airline/data/users.json": json.dumps(users),
        "tau_bench/envs/airline/data/__init__.py": """
            import json
            import os

            FOLDER_PATH = os.path.dirname(__file__)

            def load_data():
                with open(os.path.join(FOLDER_PATH, "users.json")) as f:
                    return {"users": json.load(f)}
            """,
        "tau_bench/envs/airline/tools.py": """
            import json

            def info(name, *fields):
                properties = {field: {"type": "string"} for field in fields}
                parameters = {"type": "object", "properties": properties, "required": list(fields)}
                return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}

            class GetUserDetails:
                @staticmethod
                def invoke(data, user_id):
                    return json.dumps(data["users"][user_id]) if user_id in data["users"] else "Error: user not found"

                @staticmethod
                def get_info():
                    return info("get_user_details", "user_id")

            class SendCertificate:
                @staticmethod
                def invoke(data, user_id, amount):
                    data["users"][user_id]["points"] += int(amount)
                    return f"{user_id} has {data['users'][user_id]['points']}"

                @staticmethod
                def get_info():
                    return info("send_certificate", "user_id", "amount")

            class Transfer:
                @staticmethod
                def invoke(data, summary):
                    return "Transfer successful"

                @staticmethod
                def get_info():
                    return info("transfer_to_human_agents", "summary")
            """,
        "tau_bench/envs/airline/__init__.py": f"""
            from tau_bench.envs.airline.data import load_data
            from tau_bench.envs.airline.tools import GetUserDetails, SendCertificate, Transfer
            from tau_bench.envs.base import Env

            WANTED = [{{**load_data()["users"], "ann_1": {{"name": "Ann", "{region}": "TX", "points": 8}}}}, load_data()["users"]]

            class MockAirlineDomainEnv(Env):
                def __init__(self, user_strategy="llm", user_model="gpt-4o", user_provider=None, task_split="test", task_index=None):
                    super().__init__(load_data, [GetUserDetails, SendCertificate, Transfer], WANTED, user_strategy, task_split, task_index)
                    self.terminate_tools = ["transfer_to_human_agents"]
            """,
    })  # fmt: skip


def tau2(folder):
    return write(folder, {
        "tau2/data_model/message.py": """
            from typing import Optional
            from pydantic import BaseModel

            class ToolCall(BaseModel):
                id: str = ""
                name: str
                arguments: dict
                requestor: str = "assistant"

            class AssistantMessage(BaseModel):
                role: str
                content: Optional[str] = None
                tool_calls: Optional[list[ToolCall]] = None

            class ToolMessage(BaseModel):
                id: str
                content: Optional[str] = None
            """,
        "tau2/data_model/tasks.py": """
            from enum import Enum
            from typing import Any, Optional
            from pydantic import BaseModel

            class RewardType(str, Enum):
                DB = "DB"
                COMMUNICATE = "COMMUNICATE"
                NL_ASSERTION = "NL_ASSERTION"

            class Criteria(BaseModel):
                db: dict
                communicate_info: list[str] = []
                reward_basis: list[RewardType]

            class InitialState(BaseModel):
                initialization_data: Optional[dict] = None
                initialization_actions: Optional[list[Any]] = None
                message_history: Optional[list[Any]] = None

            class Task(BaseModel):
                id: str
                initial_state: Optional[InitialState] = None
                evaluation_criteria: Criteria
            """,
        "tau2/environment/environment.py": """
            import json
            from enum import Enum

            from tau2.data_model.message import ToolMessage

            class ToolType(str, Enum):
                READ = "read"
                WRITE = "write"

            class Tool:
                def __init__(self, name):
                    self.openai_schema = {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}

            class ToolKit:
                kinds = {}

                def __init__(self, db):
                    self.db = db

                @property
                def tools(self):
                    return {name: getattr(self, name) for name in self.kinds}

                def get_tools(self):
                    return {name: Tool(name) for name in self.kinds}

                def tool_type(self, name):
                    return self.kinds[name]

            class Environment:
                def __init__(self, tools, user_tools, solo_mode):
                    self.tools, self.user_tools, self.solo_mode = tools, user_tools, solo_mode

                def set_state(self, initialization_data, initialization_actions, message_history):
                    self.tools.db.update(initialization_data or {})

                def get_db_hash(self):
                    return json.dumps(self.tools.db, sort_keys=True)

                def get_response(self, call):
                    kits = [self.tools, self.user_tools]
                    try:
                        answer = next(kit for kit in kits if call.name in kit.kinds).tools[call.name](**call.arguments)
                    except Exception as error:
                        answer = f"Error: {error}"
                    return ToolMessage(id=call.id, content=answer if isinstance(answer, str) else json.dumps(answer))
            """,
        "tau2/domains/telecom/environment.py": """
            from tau2.environment.environment import Environment, ToolKit, ToolType

            class Agent(ToolKit):
                kinds = {"get_line": ToolType.READ, "refuel": ToolType.WRITE}

                def get_line(self):
                    return {"gb": self.db["gb"]}

                def refuel(self, gb):
                    self.db["gb"] += gb
                    return "done"

            class User(ToolKit):
                kinds = {"check_status_bar": ToolType.READ}

                def check_status_bar(self):
                    return "data on" if self.db["gb"] > 0 else "data off"

            def get_environment(db=None, user_db=None, solo_mode=False):
                db = {"gb": 0}
                return Environment(Agent(db), User(db), solo_mode)
            """,
        "tau2/evaluator/evaluator_env.py": """
            from types import SimpleNamespace

            from tau2.data_model.tasks import RewardType

            class EnvironmentEvaluator:
                @classmethod
                def calculate_reward(cls, environment_constructor, task, full_trajectory, solo_mode=False):
                    env = environment_constructor(solo_mode=solo_mode)
                    if task.initial_state is not None:
                        env.set_state(task.initial_state.initialization_data, None, [])
                    for message in full_trajectory:
                        for call in getattr(message, "tool_calls", None) or []:
                            env.get_response(call)
                    right = float(env.tools.db == task.evaluation_criteria.db)
                    basis = task.evaluation_criteria.reward_basis
                    return SimpleNamespace(reward_breakdown={RewardType.DB: right} if RewardType.DB in basis else {})
            """,
        "tau2/evaluator/evaluator_action.py": """
            from types import SimpleNamespace

            class ActionEvaluator:
                @classmethod
                def calculate_reward(cls, task, full_trajectory):
                    return SimpleNamespace(reward_breakdown=None)
            """,
        "tau2/evaluator/evaluator_communicate.py": """
            from types import SimpleNamespace

            from tau2.data_model.tasks import RewardType

            class CommunicateEvaluator:
                @classmethod
                def calculate_reward(cls, task, full_trajectory):
                    said = " ".join(getattr(message, "content", "") or "" for message in full_trajectory)
                    told = float(all(info in said for info in task.evaluation_criteria.communicate_info))
                    return SimpleNamespace(reward_breakdown={RewardType.COMMUNICATE: told})
            """,
    })  # fmt: skip


def bfcl(folder):
    case = {"id": "multi_turn_base_0", "initial_config": {"Files": {"names": ["a.txt"]}}, "involved_classes": ["Files", "Sums"]}
    truth = {"id": "multi_turn_base_0", "ground_truth": [["touch(name='b.txt')"], ["add(x=1,y=2)"]]}
    backend = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
    return write(folder, {
        "bfcl_eval/constants/executable_backend_config.py": f"""
            CLASS_FILE_PATH_MAPPING = {{"Files": "{backend}.files", "Sums": "{backend}.sums"}}
            STATELESS_CLASSES = ["Sums"]
            """,
        f"{backend.replace('.', '/')}/files.py": """
            class Files:
                def _load_scenario(self, scenario, long_context=False):
                    self.names = scenario["names"]

                def ls(self):
                    return {"names": sorted(self.names)}

                def touch(self, name):
                    if name in self.names:
                        raise ValueError(f"{name} exists")
                    self.names.append(name)
            """,
        f"{backend.replace('.', '/')}/sums.py": """
            class Sums:
                def add(self, x, y):
                    return x + y
            """,
        "bfcl_eval/eval_checker/multi_turn_eval/multi_turn_checker.py": """
            def multi_turn_checker(result, truth, test_entry, test_category, model_name):
                assert model_name.isidentifier() and len(result) >= len(truth)
                right = all(set(wanted) <= {call for step in made for call in step} for made, wanted in zip(result, truth))
                return {"valid": right}
            """,
        "bfcl_eval/data/BFCL_v4_multi_turn_base.json": json.dumps(case),
        "bfcl_eval/data/possible_answer/BFCL_v4_multi_turn_base.json": json.dumps(truth),
    })  # fmt: skip
