"""Trainings of several processes, as `torchrun` and `accelerate launch` start them: each knows the others by its environment alone."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from counterplay.core.errors import UserError


def count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process writes reports. Every process has the same weights after every step."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        import torch

        accelerate: Any = import_module("accelerate")
        accelerate.PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def rows_each(batch_size: int, micro_batch: int | None) -> tuple[int, int]:
    """The rows of one forward pass of one process, and how many passes a step takes: their product over all processes is `batch_size`.

    `micro_batch` None puts all rows of a process into one pass. Raises UserError where the numbers do not divide.
    """
    processes = count()
    if batch_size % processes:
        raise UserError(f"got a batch of {batch_size} rows for {processes} processes", "a multiple of the number of processes")
    mine = batch_size // processes
    rows = mine if micro_batch is None else micro_batch
    if rows < 1 or mine % rows:
        raise UserError(f"got {rows} rows a forward pass of {mine} rows a process", f"a divisor of {mine}")
    return rows, mine // rows


def repeated(rows: int, batch_size: int, micro_batch: int | None) -> int:
    """How many of an epoch's `rows` accelerate hands out a second time, so that no process lacks a forward pass that the others make."""
    together = rows_each(batch_size, micro_batch)[0] * count()
    return -rows % together if count() > 1 else 0
