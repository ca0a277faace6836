"""Whether a server is well: a circuit that opens on failures and is closed again by a probe (Nygard 2007, "Release It!")."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_IN_A_ROW = 5
_OF, _AT_LEAST, _SHARE = 20, 10, 0.5
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 60.0


class Health:
    """Five failures in a row, or half of the last twenty requests, open the circuit: the server gets nothing for a second.

    Then it gets one request as a probe. An answer closes the circuit; a failure leaves it open for twice as long, up to a minute.
    `clock` gives seconds that never go back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.opened = False
        self.rested_at_s = -float("inf")
        """When an open circuit lets a probe through."""
        self._rest_s = _FIRST_REST_S
        self._probing = False
        self._row = 0
        self._last: deque[bool] = deque(maxlen=_OF)

    @property
    def available(self) -> bool:
        """Whether the server may get a request now, be it a probe."""
        return not self.opened or (not self._probing and self.clock() >= self.rested_at_s)

    def begin(self) -> None:
        """A request goes to the server."""
        self._probing = self.opened

    def end(self, *, well: bool | None) -> None:
        """A request to it is over. `well` is None where its end says nothing: given up, or refused for a fault of the request."""
        self._probing = False
        if well is None:
            return
        self._last.append(well)
        self._row = 0 if well else self._row + 1
        if well:
            if self.opened:
                self.opened, self._rest_s = False, _FIRST_REST_S
                self._last.clear()
        elif self.opened:
            if self.clock() >= self.rested_at_s:  # the probe; what was in flight before says nothing new
                self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)
                self.rested_at_s = self.clock() + self._rest_s
        elif self._row >= _IN_A_ROW or (len(self._last) >= _AT_LEAST and self._last.count(False) > _SHARE * len(self._last)):
            self.opened = True
            self.rested_at_s = self.clock() + self._rest_s
