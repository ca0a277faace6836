"""What a model on a server has used, by its own account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from counterplay.core.nouns import Usage

MEANINGS: Mapping[str, str] = {
    "calls": "requests that were answered; one may bring several draws",
    "retries": "requests that were made again",
    "failures": "requests that stayed unanswered after all tries",
    "short": "answers with fewer draws than asked for",
    "unmetered": "answers that did not say what they used",
    "input_tokens": "tokens read for answered requests, by the servers' account",
    "output_tokens": "tokens written for answered requests, by the servers' account",
    "cached_tokens": "those of the tokens read that a prompt cache had",
    "cost_usd": "US dollars of answered requests",
    "unusable": "answers that could not be read, and were paid for all the same",
    "wasted_tokens": "tokens of answers that could not be read",
    "lost": "requests that were sent and had no answer; they may be billed",
}
"""What each field of a `Tally` counts, for a person."""


@dataclass(slots=True)
class Tally:
    """What a policy has used so far. `calls` are answered requests, `retries` repeated ones, `failures` requests that stayed unanswered.

    `short` counts answers with fewer choices than asked for, `unmetered` those without usage. Tokens are the server's own figures;
    `cost_usd` is 0 where no price is known. All of these are about answers that were used, whatever it took to get them.

    `unusable` counts answers (status 200) that could not be read, and were asked for again: a server that answers has computed, and
    bills. `wasted_tokens` is what such answers said they used, input and output; a torn one says nothing. `lost` counts requests that were
    sent and had no answer (timeouts, broken connections): whether those are billed only the server knows. A request that found no
    connection was not sent, and is only repeated or failed.
    """

    calls: int = 0
    retries: int = 0
    failures: int = 0
    short: int = 0
    unmetered: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    unusable: int = 0
    wasted_tokens: int = 0
    lost: int = 0

    def add(self, usage: Usage | None) -> None:
        self.calls += 1
        if usage is None:
            self.unmetered += 1
            return
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cached_tokens += usage.cached_tokens
        self.cost_usd += usage.cost_usd or 0.0
