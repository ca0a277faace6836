"""From what a user names to the parts a search needs: policy, environment for each trace, verifier."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from counterplay.core.errors import CounterplayError, UserError
from counterplay.core.loading import resolve
from counterplay.core.nouns import Message, ToolSpec, Trace, parse_json_object
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.replay.world import World

EnvironmentOf = Callable[[Trace], Environment]
WorldOf = Callable[[Any], World | Awaitable[World]]
_BY_NAME = ("openai", "batch", "transformers")
_MODELS = ("prm", "implicit-prm")


@dataclass(frozen=True)
class Asked:
    """Parts by name, as the command line takes them. Empty names mean that the user gave none.

    `max_steps` None leaves the length of branches to the search (twice the log, for those that fork it).
    `price` is US dollars per million input and output tokens; None is unknown, and a limit in dollars is then refused.
    `simulator` answers what the recordings do not hold; empty: nothing is simulated. `comparable` maps texts of logs and of live
    actions before they are matched, as the store's redaction does; None compares them as they are. `timeout_s` is how long a server of
    the policy may take for an answer before it is asked again; None is the policy's own default.
    """

    policy: str = ""
    environment: str = "recorded"
    verifiers: tuple[str, ...] = ()
    base_url: str | None = None
    temperature: float = 1.0
    max_tokens: int | None = None
    seed: int = 0
    max_steps: int | None = None
    allow_external: frozenset[str] = frozenset()
    price: tuple[float, float] | None = None
    extra_body: Mapping[str, Any] | None = None
    simulator: str = ""
    comparable: Callable[[str], str] | None = None
    timeout_s: float | None = None

    @property
    def local(self) -> bool:
        """Whether the policy is a model in this process, which makes batches of what it is asked."""
        return self.policy.startswith("transformers:")

    def make_policy(self, traces: Sequence[Trace] = (), *, concurrency: int = 16) -> Policy:
        """The policy; `logged` proposes what `traces` did, a server gets at most `concurrency` requests at once.

        Raises UserError where none was named.
        """
        from counterplay.replay.openai_answers import Price
        from counterplay.replay.policies import policy_from_spec

        if not self.policy:
            raise UserError("got no policy", "--policy openai:MODEL, transformers:DIR, logged, or module:attr")
        return policy_from_spec(
            self.policy,
            base_url=self.base_url,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=self.seed,
            concurrency=concurrency,
            trajectories=[trace.trajectory for trace in traces],
            price=None if self.price is None else Price(*self.price),
            extra_body=self.extra_body,
            timeout_s=self.timeout_s,
        )

    def check_environment(self) -> None:
        """Raises UserError where it, or what simulates, can't be made."""
        self.make_environment([])

    def check_verifiers(self) -> None:
        """Raises UserError where one can't be made. Models are looked for, not loaded."""
        from counterplay.verifiers.registry import load

        for spec in self.verifiers:
            kind, _, rest = spec.partition(":")
            if kind not in _MODELS:
                load(spec)
            elif missing := next((name for name in rest.split(",") if not Path(name).is_dir()), None):
                raise UserError(f"got verifier {spec!r}, and {missing} is no folder", "the folder of a model")

    def check_policy(self) -> None:
        """Raises UserError where it can't be made. A model is looked for, not loaded; a server is not asked, and nothing is written."""
        kind, _, rest = self.policy.partition(":")
        folder, _, model = rest.partition(":")
        if kind == "transformers" and rest:
            if not Path(rest).is_dir():
                raise UserError(f"got policy {self.policy!r}, and {rest} is no folder", "the folder of a model")
        elif kind == "batch" and folder and model:
            replace(self, policy=f"openai:{model}").make_policy()  # asks the same, and makes no folder
        elif kind not in _BY_NAME and ":" in self.policy:
            resolve(self.policy, "policy")
        else:
            self.make_policy()

    def make_verifier(self) -> Verifier:
        """One verifier: the named ones, all of which must be content; the logged or played outcome where none was named."""
        from counterplay.verifiers.combine import all_of
        from counterplay.verifiers.registry import load

        loaded = [load(spec) for spec in self.verifiers or ("outcome",)]
        return loaded[0] if len(loaded) == 1 else all_of(*loaded)

    def make_environment(self, traces: Sequence[Trace]) -> EnvironmentOf:
        """For each trace its environment: the recordings of its task, or a live world made for its task."""
        if self.environment != "recorded":
            if self.simulator:
                raise UserError(f"got --simulate {self.simulator} beside --environment {self.environment}", "one of them")
            return self._live(world_factory(self.environment))
        from counterplay.replay.recorded import RecordedEnvironment

        fallback = self._simulation(traces) if self.simulator else None

        def recorded(trace: Trace) -> Environment:
            peers = [other.trajectory for other in traces if trace.task is not None and other.task == trace.task and other.id != trace.id]
            return RecordedEnvironment([trace.trajectory, *peers], fallback=fallback, comparable=self.comparable)

        return recorded

    def _simulation(self, traces: Sequence[Trace]) -> Environment:
        from counterplay.replay.simulators import simulation_from_spec

        base_url = self.base_url if self.simulator.startswith("openai:") else None
        return simulation_from_spec(self.simulator, [trace.trajectory for trace in traces], base_url=base_url)

    def _live(self, factory: WorldOf) -> EnvironmentOf:
        from counterplay.replay.live import LiveEnvironment

        def live(trace: Trace) -> Environment:
            made_for = subject(factory, trace)
            made = make_world(factory, made_for)
            if is_environment(made):
                return cast("Environment", made)
            first = iter([made])
            return LiveEnvironment(
                lambda: next(first, None) or make_world(factory, made_for),
                task=task_of(trace),
                max_steps=self.max_steps,
                allow_external=self.allow_external,
            )

        return live


def price_from(text: str | None) -> tuple[float, float] | None:
    """Read `INPUT,OUTPUT` in US dollars per million tokens. Raises UserError where it can't be read."""
    if text is None:
        return None
    try:
        given, made = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"got --price {text!r}", "INPUT,OUTPUT in US dollars per million tokens, e.g. 0.15,0.60") from None
    return given, made


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Read an option that is a JSON object. Raises UserError where it is not."""
    if text is None:
        return None
    found = parse_json_object(text)
    if found is None:
        raise UserError(f"got {option} {text!r}", "a JSON object")
    return found


@asynccontextmanager
async def closing(policy: Policy) -> AsyncIterator[Policy]:
    """`policy`, let go of at the end in the event loop that used it, whichever way of closing it has."""
    try:
        yield policy
    finally:
        if hasattr(policy, "aclose"):
            await policy.aclose()
        elif hasattr(policy, "close"):
            policy.close()


def task_of(trace: Trace) -> str:
    """The task a world is made for. Raises UserError where the log did not say."""
    if trace.task is None:
        raise UserError(
            f"got trace {trace.id} without a task", "a task to make its world for", "Use --environment recorded, or log the task."
        )
    return trace.task


def subject(factory: WorldOf, trace: Trace) -> Any:
    """What a factory is given: the task, or the whole trace where it says `takes_trace`."""
    return trace if getattr(factory, "takes_trace", False) else task_of(trace)


def is_environment(made: object) -> bool:
    """Whether a factory gave a whole environment, such as `agent_environment` makes, and not a world."""
    return isinstance(made, Environment) and not isinstance(made, World)


def make_world(factory: WorldOf, task: Any) -> World | Awaitable[World]:
    """The world of a task, or what becomes it where the factory is async. Raises UserError where the factory, the user's code, fails."""
    with _explained(task):
        made = factory(task)
    return _awaited(made, task) if inspect.isawaitable(made) else _checked(made, task)


async def _awaited(made: Awaitable[World], task: Any) -> World:
    with _explained(task):
        world = await made
    return _checked(world, task)


@contextmanager
def _explained(task: Any) -> Iterator[None]:
    try:
        yield
    except CounterplayError:
        raise
    except Exception as error:
        of = f"trace {task.id}" if isinstance(task, Trace) else f"task {task!r}"
        raise UserError(f"the environment made no world for {of}: {type(error).__name__}: {error}", "a world") from error


def _checked(world: World, task: Any) -> World:
    if is_environment(world):
        return world
    if not isinstance(world, World):
        of = f"trace {task.id}" if isinstance(task, Trace) else f"task {task!r}"
        raise UserError(f"the environment gave {type(world).__name__} for {of}", "an object with tools, prompt and call")
    for part in (world.tools, world.prompt):
        if not isinstance(part, Sequence):
            raise UserError(f"the environment's tools or prompt are a {type(part).__name__}", "sequences of ToolSpecs and Messages")
    wrong = [*(t for t in world.tools if not isinstance(t, ToolSpec)), *(m for m in world.prompt if not isinstance(m, Message))]
    if wrong:
        do = "ToolSpec.from_openai and Message.from_openai take dicts."
        raise UserError(f"the environment's tools or prompt hold a {type(wrong[0]).__name__}", "ToolSpecs and Messages", do)
    return world


def world_factory(spec: str) -> WorldOf:
    """The factory `module:attr` names. Raises UserError where it can't be called or found."""
    if ":" not in spec:
        raise UserError(f"got environment {spec!r}", "recorded, or module:attr, a factory of worlds by task")
    factory = resolve(spec, "environment")
    if not callable(factory):
        raise UserError(
            f"got environment {spec!r}, a {type(factory).__name__}", "a class or function that takes a task and returns a world"
        )
    return cast("WorldOf", factory)
