"""What is done between two queries, outside of every timed part: feeling the machine's pulse."""

from __future__ import annotations

from typing import Protocol

from edgeclip.bench.report import Pulse


class Between(Protocol):
    """Given to a scenario, which calls it between queries."""

    def begin(self) -> None:
        """A scenario's measuring begins: pulses from here on are its own, at 0 ms."""

    def tick(self) -> None:
        """Do what is due; if nothing is, return within a microsecond."""

    def pulse(self) -> Pulse | None:
        """The pulses since `begin`; None where none are taken."""


class Nothing:
    """Does nothing: for runs that need neither."""

    def begin(self) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""

    def pulse(self) -> Pulse | None:
        """None."""
        return None
