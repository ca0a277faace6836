"""What every command shares: the applications they hang on, the options that several take, and how errors become words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from counterplay import console
from counterplay.core.errors import CounterplayError, UserError

app = typer.Typer(
    name="counterplay",
    help="Counterfactual replay: logged agent traces in, a better agent out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def group(name: str, help: str) -> typer.Typer:  # noqa: A002  typer's word
    """A command that has commands of its own."""
    made = typer.Typer(help=help, no_args_is_help=True)
    app.add_typer(made, name=name)
    return made


P = ParamSpec("P")
_EXTRA = dict.fromkeys(("torch", "transformers", "trl", "datasets", "peft", "accelerate"), "train")
_EXTRA |= dict.fromkeys(("starlette", "uvicorn", "google"), "receive")

StoreFile = Annotated[Path, typer.Option("--store", help="The store, one DuckDB file.", envvar="COUNTERPLAY_STORE")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
PolicySpec = Annotated[str, typer.Option("--policy", help="openai:MODEL, transformers:DIR, logged, or module:attr.")]
EnvironmentSpec = Annotated[str, typer.Option("--environment", help="recorded, or module:attr, a factory of worlds by task.")]
VerifierSpecs = Annotated[
    list[str] | None,
    typer.Option(
        "--verifier",
        help="NAME, policy:FILE, double_entry:FILE, judge:MODEL, prm:FOLDER, implicit-prm:POLICY,REFERENCE or module:attr "
        "(default outcome); repeatable: all must be content.",
    ),
]
BaseUrl = Annotated[str | None, typer.Option("--base-url", help="Base URL of an OpenAI-compatible server.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Sampling temperature; 0 is greedy.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Tokens an action may have.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of sampling and search.")]
Price = Annotated[str | None, typer.Option("--price", help="US dollars per million input and output tokens, e.g. 0.15,0.60.")]
ExtraBody = Annotated[str | None, typer.Option("--extra-body", help="A JSON object that is added to every request to a server.")]
TraceIds = Annotated[list[str] | None, typer.Option("--trace", help="A trace id, or how it begins; repeatable.")]
Agent = Annotated[str | None, typer.Option("--agent", help="Only traces of this agent.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many traces.")]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="Model calls a branch may have; without it, the search's own limit.")]
AllowExternal = Annotated[
    list[str] | None,
    typer.Option("--allow-external", help="A tool with external effect that may really be called, and again where a prefix is."),
]
Redact = Annotated[
    list[str] | None,
    typer.Option("--redact", help="Also replace: pii, or email, card, iban, us-ssn, ip, phone; repeatable. Secrets always are."),
]
RedactRules = Annotated[
    Path | None, typer.Option("--redact-rules", help="TOML file of kinds and patterns to replace, in place of secrets.")
]
NoRedact = Annotated[bool, typer.Option("--no-redact", help="Store everything as logged, secrets too.")]
DEFAULT_STORE = Path("counterplay.duckdb")
MaxLength = Annotated[
    int | None, typer.Option("--max-length", help="The most tokens of a row: export leaves longer ones out by name, training refuses them.")
]


InFlight = Annotated[
    int | None,
    typer.Option("--in-flight", min=1, help="Requests in flight over all traces; 64, and for transformers: no limit, where not given."),
]
RequestsPerMinute = Annotated[
    float | None, typer.Option("--requests-per-minute", min=1, help="Requests a minute over all traces; no limit where not given.")
]
TokensPerMinute = Annotated[
    float | None, typer.Option("--tokens-per-minute", min=1, help="Tokens a minute over all traces; no limit where not given.")
]
TimeoutS = Annotated[
    float | None,
    typer.Option("--timeout-s", min=0.001, help="How long a server may take for an answer before it is asked again; 120 where not given."),
]


def bounded(command: Callable[P, None]) -> Callable[P, None]:
    """The one place where errors become words: a CounterplayError is explained and sets the exit code; nothing else is hidden."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except CounterplayError as error:
            console.complain(error, as_json=as_json)
            raise typer.Exit(error.exit_code) from None
        except ModuleNotFoundError as error:
            extra = _EXTRA.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            do = f"pip install 'counterplay[{extra}]'"
            console.complain(UserError(f"{error.name} is not installed", "the extra it belongs to", do), as_json=as_json)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.err.print("stopped; what is stored and what was answered is kept, run the same command to go on", soft_wrap=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return run


def some(chosen: list[Any], store: Path) -> None:
    if not chosen:
        raise CounterplayError(
            f"got no trace of that kind in {store}", "at least one", f"See what there is: counterplay stats --store {store}"
        )
