"""What a command may spend: the options that say so, who is asked otherwise, and a command line that does it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from . import embedders
from .domain import Embedder, Estimate, Index
from .errors import ConfirmationNeeded, VecError, counted
from .paid import PaidEmbedder
from .printing import confirm, is_terminal, print_aside, spelled_cost


def spending_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add --yes and --max-usd to a command."""
    yes = click.option("--yes", is_flag=True, help="Spend what the estimate says without asking.")
    max_usd = click.option(
        "--max-usd",
        type=float,
        metavar="USD",
        callback=_checked,
        help="Spend up to so many dollars in this run without asking, and stop there.",
    )
    return yes(max_usd(command))


def _checked(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise click.BadParameter(f"{value} is no amount of dollars, which is 0 or more.", ctx, param)
    return value


def paid(specification: str) -> PaidEmbedder | None:
    """The embedder of that name if it costs money. Raises UnknownEmbedder, EmbedderUnavailable, InvalidSetting."""
    model = embedders.load(specification)
    return model if isinstance(model, PaidEmbedder) else None


@dataclass(kw_only=True)
class Consent:
    """What one run of a command on the file `db` may spend.

    `yes` and `max_usd` are its options; `spent_usd` is what it has come to. After `stopped_by` nothing more is spent.
    """

    db: Path
    yes: bool = False
    max_usd: float | None = None
    spent_usd: float = 0.0
    stopped_by: VecError | None = None

    @property
    def is_given(self) -> bool:
        """Whether the options say yes."""
        return self.yes or self.max_usd is not None

    @property
    def left_usd(self) -> float | None:
        """What is left of `max_usd`."""
        return None if self.max_usd is None else max(0.0, self.max_usd - self.spent_usd)

    def command(self, verb: str, *arguments: str) -> str:
        """A command line that can be pasted."""
        return shlex.join(["datasette", "vec", verb, str(self.db), *arguments])

    def approve(self, expected: Estimate, *, what: str = "", otherwise: str) -> None:
        """Return if the cost is agreed to; `otherwise` says how things stand if not.

        Raises EmbedderUnavailable where there is no key, ConfirmationNeeded where nobody says yes.
        """
        if self.stopped_by:
            raise self.stopped_by
        if model := paid(expected.embedder):
            model.require_key()
        if self.is_given:
            return
        what = what or f"{counted(expected.chunks, 'chunk')} of {counted(expected.rows, 'row')} to embed"
        cost = f"{expected.index} with {expected.embedder}: {what}, {spelled_cost(expected)}"
        if not is_terminal():
            raise ConfirmationNeeded(
                f"{cost}. Say yes with --yes, or up to a limit with --max-usd {_limit(expected.usd)}; {otherwise}"
            )
        print_aside(cost)
        if not confirm("Spend this?"):
            raise ConfirmationNeeded(f"not agreed to, so nothing was spent; {otherwise}")

    def require(self, model: PaidEmbedder) -> None:
        """Refuse what could not be agreed to later on: there is no key, or nobody to ask."""
        model.require_key()
        if not self.is_given and not is_terminal():
            raise ConfirmationNeeded(
                f"{model.name} costs money and there is nobody to ask, so nothing was changed: say yes with --yes, or "
                "up to a limit with --max-usd USD; to know the cost first, declare the index with --no-sync and run "
                "`datasette vec estimate DB INDEX`"
            )

    def require_cap(self, chosen: Sequence[Index]) -> None:
        """Refuse to spend in the background without a limit that somebody has set."""
        for index in chosen:
            if self.max_usd is None and (model := paid(index.embedder)) and model.access.daily_usd is None:
                raise ConfirmationNeeded(
                    f"index {index.name} costs money, and --watch spends without asking: limit this run with "
                    "--max-usd USD, or each day with DATASETTE_VEC_DAILY_USD"
                )


def _limit(usd: float) -> str:
    """Dollars with which a run of that estimate ends well: a fifth more, in whole cents."""
    return f"{int(usd * 120 + 1) / 100:.2f}"


def remedy(expected: Estimate, chosen: Index, model: Embedder, consent: Consent) -> str:
    """The command that spends what was expected."""
    limit = ("--max-usd", _limit(expected.usd))
    if model.fingerprint == chosen.fingerprint:
        return consent.command("sync", chosen.name, *limit)
    return consent.command("rebuild", chosen.name, "--embedder", model.name, *limit)
