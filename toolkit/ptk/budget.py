"""What a run may ask of its models: it stops before it would ask more."""

from __future__ import annotations

from dataclasses import dataclass

from ptk.errors import PtkError

__all__ = ["Budget", "BudgetExceeded"]


class BudgetExceeded(PtkError):
    """A step would ask more than the run may; nothing of the round was asked."""


@dataclass(slots=True)
class Budget:
    """The most requests, and prompt and answer tokens, that may be asked in a run; None is no bound."""

    requests: int | None = None
    tokens: int | None = None
    asked: int = 0
    spent: int = 0

    def take(self, step: str, requests: int, tokens: int) -> None:
        """Count a round of requests. `tokens` is the most they can take. Raises BudgetExceeded before anything is asked."""
        for what, bound, before, more in (
            ("requests", self.requests, self.asked, requests),
            ("tokens", self.tokens, self.spent, tokens),
        ):
            if bound is not None and before + more > bound:
                earlier = f" after {before:,} that were asked already" if before else ""
                raise BudgetExceeded(
                    f"step '{step}' would ask for {'up to ' if what == 'tokens' else ''}{more:,} {what}{earlier}, and --max-{what} is {bound:,}; "
                    "nothing of it was asked"
                )
        self.asked += requests
        self.spent += tokens
