"""An agent that plans experiments, runs them within a budget, and keeps notes."""

from saesteer.agent.loop import AgentResult, run_agent
from saesteer.agent.settings import AgentConfig

__all__ = ["AgentConfig", "AgentResult", "run_agent"]
