"""The budget, which the program keeps whatever the planner says."""

from __future__ import annotations

from saesteer.agent.settings import AgentConfig
from saesteer.agent.state import State


class Budget:
    """What is spent and what is left, by an agent's settings."""

    def __init__(self, config: AgentConfig) -> None:
        self.limits = config.budget
        self.planner = config.planner

    def money(self, tokens_in: int, tokens_out: int) -> float:
        """Return what tokens cost."""
        cost_in = (self.planner.price_in or 0.0) * tokens_in
        return (cost_in + (self.planner.price_out or 0.0) * tokens_out) / 1e6

    def spent(self, state: State) -> dict[str, float | int]:
        """Return what was spent."""
        return {
            "experiments": len(state.experiments),
            "turns": state.turns,
            "tokens": state.tokens_in + state.tokens_out,
            "money": round(self.money(state.tokens_in, state.tokens_out), 6),
            "seconds": round(state.seconds, 1),
        }

    def left(self, state: State) -> dict[str, float | int | None]:
        """Return what is left of everything, for the planner and for people."""
        limits = {**self.limits.model_dump(), "turns": self.limits.most_turns}
        return {
            name: None if limits[name] is None else round(limits[name] - spent, 6)
            for name, spent in self.spent(state).items()
        }

    def ended_by(self, state: State) -> str | None:
        """Return why the agent must stop, or None where it may go on."""
        if state.finish is not None:
            return "it has concluded"
        left = self.left(state)
        for name in ("turns", "tokens", "seconds", "money"):
            value = left[name]
            if value is not None and value <= 0:
                return f"its budget of {name} is spent"
        if state.refused >= self.limits.refusals:
            return f"{state.refused} answers in a row were refused"
        if any(count >= self.limits.repeats for count in state.repeats.values()):
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
