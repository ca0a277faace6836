"""What is well on this machine, what is not, and what to do about it, in words.

Nothing heavy is imported: what is installed is read from package metadata. No value of an environment variable is ever told.
"""

from __future__ import annotations

import operator
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

State: TypeAlias = Literal["well", "absent", "odd", "broken"]

PACKAGE = "counterplay"
_DEV = ("dev",)
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?$")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_BOUND = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([0-9][0-9.]*)")
_SIGNS = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt, "!=": operator.ne, "==": operator.eq}
_LITTLE_BYTES, _TIGHT_BYTES = 200 << 20, 2 << 30
_GROUPS = ("counterplay.verifiers", "counterplay.connectors", "counterplay.dialects")
_GPU_FILES = ("/dev/nvidia0", "/dev/kfd")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
VARIABLES: Mapping[str, str] = {
    "COUNTERPLAY_STORE": "the store, where a command gets none",
    "OPENAI_API_KEY": "the key of model servers",
    "OPENAI_BASE_URL": "the address of the model server",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "where `run --otel` sends spans and metrics",
    "OTEL_EXPORTER_OTLP_HEADERS": "headers for collectors",
    "AWS_ACCESS_KEY_ID": "object stores",
    "AWS_ENDPOINT_URL": "object stores",
    "AZURE_STORAGE_ACCOUNT": "object stores",
    "LANGFUSE_PUBLIC_KEY": "pulls from Langfuse",
    "LANGSMITH_API_KEY": "pulls from LangSmith",
    "PHOENIX_API_KEY": "pulls from Phoenix",
    "MLFLOW_TRACKING_TOKEN": "pulls from MLflow",
    "RAY_ADDRESS": "the cluster of jobs with engine ray",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `absent` is not there and need not be; `odd` works, but not as it might; `broken` does not work.

    `do` says what would help; empty where nothing has to be done.
    """

    area: str
    name: str
    state: State
    said: str
    do: str = ""


def examined(
    store: Path, *, base_urls: Sequence[str] = (), model: str = "", full: bool = False, timeout_s: float = 10.0
) -> Iterator[Finding]:
    """Everything, one area after another. `base_urls` are asked, for tokens of `model` (empty: the first that each lists).

    `full` verifies the whole store in place of a sample, and imports torch to see what it can use.
    """
    from counterplay.doctor_servers import server
    from counterplay.doctor_store import store_findings

    yield from versions()
    yield from learning(full=full)
    yield from sandbox()
    yield from machine(store)
    yield from store_findings(store, full=full)
    yield from plugins()
    for base_url in base_urls:
        yield from server(base_url, model=model, timeout_s=timeout_s)
    yield from variables()


def versions(requirements: Iterable[str] | None = None) -> Iterator[Finding]:
    """Python, the libraries that are always needed, and which extras can be used. `requirements` None: those of the installed package."""
    wanted = (3, 11)
    told = platform.python_version()
    if sys.version_info >= wanted:
        yield Finding("python", "version", "well", f"{told} at {sys.prefix}")
    else:
        yield Finding("python", "version", "broken", f"{told}, wanted 3.11 or later", "Make a newer environment.")
    try:
        needed = metadata.requires(PACKAGE) if requirements is None else requirements
    except metadata.PackageNotFoundError:
        yield Finding("python", PACKAGE, "odd", "it is not installed, so what it needs is not known", "pip install counterplay")
        return
    by_extra: dict[str, list[tuple[str, str]]] = {"": []}
    for text in needed or ():
        found = _REQUIREMENT.match(text)
        if found is not None:
            of = _EXTRA.search(found[3] or "")
            by_extra.setdefault(of[1] if of else "", []).append((found[1], found[2]))
    for extra, libraries in by_extra.items():
        if extra not in _DEV:
            yield _of_extra(extra, libraries)


def _of_extra(extra: str, libraries: Sequence[tuple[str, str]]) -> Finding:
    held = {name: _version(name) for name, _ in libraries}
    missing = [name for name, version in held.items() if version is None]
    other = [f"{name} {held[name]}, wanted {bounds}" for name, bounds in libraries if held[name] and not _fits(str(held[name]), bounds)]
    if not extra:
        if missing:
            do = f"pip install {' '.join(missing)}"
            return Finding("libraries", "needed", "broken", f"not installed: {', '.join(missing)}", do)
        if other:
            return Finding("libraries", "needed", "odd", "; ".join(other), "pip install --upgrade counterplay")
        return Finding("libraries", "needed", "well", f"all {len(libraries)} are there")
    do = f"pip install '{PACKAGE}[{extra}]'"
    if missing:
        return Finding("extras", extra, "absent", f"not installed: {', '.join(missing)}", do)
    if other:
        return Finding("extras", extra, "odd", "; ".join(other), do)
    return Finding("extras", extra, "well", ", ".join(f"{name} {version}" for name, version in held.items()))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool:
    """Whether a version is within `>=2,<3`. Of what stands behind its numbers (rc1, +cpu) nothing is asked."""
    return all(_compare(_numbers(version), sign, _numbers(bound)) for sign, bound in _BOUND.findall(bounds))


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _compare(version: tuple[int, ...], sign: str, bound: tuple[int, ...]) -> bool:
    length = max(len(version), len(bound))
    left, right = ((*one, *[0] * (length - len(one))) for one in (version, bound))
    if sign == "~=":
        return left >= right and left[: len(bound) - 1] == right[: len(bound) - 1]
    return bool(_SIGNS[sign](left, right))


def learning(*, full: bool) -> Iterator[Finding]:
    """Whether there is torch, and what it can use."""
    version = _version("torch")
    if version is None:
        yield Finding("torch", "version", "absent", "not installed: no training, no local models", "pip install 'counterplay[train]'")
        return
    seen = any(Path(file).exists() for file in _GPU_FILES)
    if not full:
        built = "for CPUs alone" if version.endswith("+cpu") else "see --full for what it can use"
        state: State = "odd" if seen and version.endswith("+cpu") else "well"
        do = "Install torch for your GPU: https://pytorch.org" if state == "odd" else ""
        yield Finding("torch", "version", state, f"{version}, {built}; {'a GPU' if seen else 'no GPU'} is in this machine", do)
        return
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or f"no GPU, {torch.get_num_threads()} threads"
    except Exception as error:  # noqa: BLE001  a damaged installation fails in its own ways, and that is what is looked for
        yield Finding("torch", "import", "broken", f"{version} can't be imported: {type(error).__name__}: {error}", "Install it again.")
        return
    state = "odd" if seen and not count else "well"
    yield Finding("torch", "devices", state, f"{version}: {names}", "" if state == "well" else "A GPU is there; torch can't use it.")


def sandbox() -> Iterator[Finding]:
    """How programs that nobody vouches for can be run here."""
    from counterplay.verifiers.sandbox import available

    found = available()
    if found:
        yield Finding("sandbox", "isolation", "well", f"{', '.join(found)}; the best is taken")
    else:
        do = "Install bubblewrap, or use a Linux kernel with Landlock: docs/sandbox.md"
        yield Finding("sandbox", "isolation", "odd", "none: verifiers that run programs refuse to", do)


def machine(store: Path) -> Iterator[Finding]:
    """Room on disk beside the store, and memory."""
    folder = store.absolute().parent
    folder = next((place for place in (folder, *folder.parents) if place.is_dir()), Path())
    free = shutil.disk_usage(folder).free
    held = store.stat().st_size if store.is_file() else 0
    state: State = "broken" if free < _LITTLE_BYTES else "odd" if free < max(_TIGHT_BYTES, held) else "well"
    do = {"broken": "Make room: nothing can be written.", "odd": "Make room: `counterplay compact` writes a second copy of the store."}
    yield Finding("machine", "disk", state, f"{_size(free)} free in {folder}", do.get(state, ""))
    memory = _memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if memory is None:
        yield Finding("machine", "memory", "absent", f"not known here; {cores} CPUs")
        return
    state = "odd" if memory < _TIGHT_BYTES else "well"
    do_memory = 'Bound what the store takes: [engine] memory = "512MB".' if state == "odd" else ""
    yield Finding("machine", "memory", state, f"{_size(memory)} available, {cores} CPUs", do_memory)


def _memory() -> int | None:
    """Bytes that are free to be used; of a container what its limit is, where that is less."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    if found is None:
        return None
    limits = [Path(file).read_text(encoding="ascii").strip() for file in _LIMITS if os.access(file, os.R_OK)]
    return min([int(found[1]) * 1024, *(int(limit) for limit in limits if limit.isdigit())])


def _size(amount: int) -> str:
    return f"{amount / (1 << 30):.1f} GB" if amount >= 1 << 30 else f"{amount / (1 << 20):.0f} MB"


def plugins() -> Iterator[Finding]:
    """Verifiers, connectors and dialects of other packages: whether each can be imported."""
    found = [(group, point) for group in _GROUPS for point in metadata.entry_points(group=group)]
    for group, point in sorted(found, key=lambda one: (one[0], one[1].name)):
        kind = group.rpartition(".")[2]
        try:
            point.load()
        except Exception as error:  # noqa: BLE001  plugin code may raise anything, and that is what is looked for
            said = f"{point.value} can't be imported: {type(error).__name__}: {error}"
            yield Finding("plugins", f"{kind}: {point.name}", "broken", said, "Mend or remove the package that it comes from.")
        else:
            yield Finding("plugins", f"{kind}: {point.name}", "well", point.value)
    if not found:
        yield Finding("plugins", "all", "absent", "none is installed beside the built-in ones")


def variables(environment: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Which variables are set. Their values are not told."""
    known = os.environ if environment is None else environment
    for name, said in VARIABLES.items():
        there = bool(known.get(name))
        yield Finding("environment", name, "well" if there else "absent", f"{'set' if there else 'not set'}: {said}")
