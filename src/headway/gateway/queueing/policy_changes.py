"""Policy changes: queues, then their requests, the oldest first, go over to other policies, so many as a turn takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

from headway.gateway.queueing.dispatch_contracts import QueueHooks
from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.queue_policies import SharedAccounts
from headway.gateway.queueing.request_state import QueueKey
from headway.gateway.settings import Settings

TURN_SECONDS = 0.01
"""How long dispatches, or moves to changed policies, may go on before every other connection has its turn."""


class PolicyQueues(Protocol):
    """The queues whose policies change."""

    settings: Settings
    queues: dict[QueueKey, ModelQueue]
    accounts: SharedAccounts
    errors: InternalErrors
    now: Callable[[], float]

    def pump(self) -> None:
        """Dispatch what there is room for."""


class PolicyChanges:
    """One change at a time; a later one takes the place of one that goes on."""

    def __init__(self, served: PolicyQueues, hooks: QueueHooks) -> None:
        self._served = served
        self._hooks = hooks
        self._unchanged: deque[ModelQueue] = deque()  # whose policies are still those of before the change
        self._keeps_line = False
        self.goes_on = False

    def begin(self, *, keeps_line: bool = False) -> None:
        """Change to the policies of the settings; with `keeps_line` the waiting keep a bound on being passed."""
        self._unchanged = deque(self._served.queues.values())
        self._keeps_line = keeps_line
        self._move_waiting()

    def _move_waiting(self) -> None:
        served, go_on_soon = self._served, self._hooks.go_on_soon
        until = served.now() + TURN_SECONDS
        self.goes_on = False
        for _ in chain(self._change_queues(), self._move_requests()):
            if go_on_soon is not None and served.now() >= until:
                self.goes_on = True
                go_on_soon(self._move_waiting)
                break
        served.pump()

    def _change_queues(self) -> Iterator[None]:
        """A queue at a step: what its policies have learned goes over to the changed ones, which takes its time."""
        served = self._served
        while self._unchanged:
            queue = self._unchanged.popleft()
            if served.queues.get(queue.key) is not queue:
                continue  # forgotten meanwhile
            policies = served.settings.policies_of(queue.key.model)
            if self._keeps_line and policies is not served.settings.policies:
                continue  # it has an order of its own
            served.errors.guard("policies", queue.change_policies, policies, served.accounts, self._keeps_line)
            yield

    def _move_requests(self) -> Iterator[None]:
        for queue in list(self._served.queues.values()):
            while queue.move_one(self._served.now()):
                yield
