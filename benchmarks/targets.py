"""A figure beside what it must reach."""

import sys

_missed: list[str] = []


def report(
    what: str, value: float, unit: str = "", *, at_most: float | None = None, at_least: float | None = None
) -> None:
    """Print a figure, and remember if it misses its target."""
    bound, met = "", True
    if at_most is not None:
        bound, met = f"at most {at_most:g}", value <= at_most
    if at_least is not None:
        bound, met = f"at least {at_least:g}", value >= at_least
    if not met:
        _missed.append(what)
    print(f"{what:<58}{value:>10.4g} {unit:<10}{bound:<16}{'' if not bound else 'ok' if met else 'MISSED'}", flush=True)


def finish() -> None:
    """Exit with 1 if any target was missed."""
    sys.exit(bool(_missed))
