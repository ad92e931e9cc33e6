"""Delivery of events to the policies that listen: each listener once, in a fixed order."""

from __future__ import annotations

from headway.domain.event import Event, Listener


class EventFanout:
    """Delivers every event to each listener once, in the order given. Policies that do not listen are left out.

    One object may answer several questions of a bundle; it still receives each event once. `listeners` may be read by
    a caller that delivers events itself, because it times them or saves a call on a hot path.
    """

    __slots__ = ("listeners",)

    def __init__(self, *policies: object) -> None:
        self.listeners: tuple[Listener, ...] = tuple(
            {id(policy): policy for policy in policies if isinstance(policy, Listener)}.values()
        )

    def __contains__(self, policy: object) -> bool:
        return any(listener is policy for listener in self.listeners)

    def observe(self, event: Event) -> None:
        """Deliver one event."""
        for listener in self.listeners:
            listener.observe(event)
