"""The budget, which the program keeps whatever the planner says."""

from __future__ import annotations

from saesteer.agent.settings import AgentConfig
from saesteer.agent.state import State


class Budget:
    """What is spent and what is left.

    Args:
        config: The agent's settings.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.limits = config.budget
        self.planner = config.planner

    def money(self, tokens_in: int, tokens_out: int) -> float:
        """Return what tokens cost."""
        planner = self.planner
        cost_in = (planner.price_in or 0.0) * tokens_in
        return (cost_in + (planner.price_out or 0.0) * tokens_out) / 1e6

    def left(self, state: State) -> dict[str, float | int | None]:
        """Return what is left of everything, for the planner and for people."""
        limits = self.limits
        spent = self.money(state.tokens_in, state.tokens_out)
        return {
            "experiments": limits.experiments - len(state.experiments),
            "turns": limits.most_turns - state.turns,
            "tokens": limits.tokens - state.tokens_in - state.tokens_out,
            "seconds": round(limits.seconds - state.seconds, 1),
            "money": None if limits.money is None else round(limits.money - spent, 6),
        }

    def ended_by(self, state: State) -> str | None:
        """Return why the agent must stop, or None where it may go on."""
        left, limits = self.left(state), self.limits
        if state.finish is not None:
            return "it has concluded"
        for name in ("turns", "tokens", "seconds", "money"):
            value = left[name]
            if value is not None and value <= 0:
                return f"its budget of {name} is spent"
        if state.refused >= limits.refusals:
            return f"{state.refused} answers in a row were refused"
        if any(count >= limits.repeats for count in state.repeats.values()):
            return "it repeats itself"
        return None

    def affords(self, state: State, prompt_tokens: int) -> int:
        """Return how many attempts at one more answer fit what is left, at their longest."""
        limits, longest = self.limits, self.planner.max_tokens
        fits = (limits.tokens - state.tokens_in - state.tokens_out) // (prompt_tokens + longest)
        price = self.money(prompt_tokens, longest)
        if limits.money is not None and price > 0:
            spent = self.money(state.tokens_in, state.tokens_out)
            fits = min(fits, int((limits.money - spent) / price))
        return max(0, fits)
