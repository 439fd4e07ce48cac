"""Which engine writes, as settings and on the command line."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from saesteer.utils.http import is_plain_address, is_variable_name
from saesteer.utils.settings import Settings, Source


class EngineSettings(Settings):
    """What writes completions; a name alone will do for the first two."""

    # "transformers"; "paged", its continuous batching, for many prompts of unequal length; or
    # "openai", a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp.
    name: Literal["transformers", "paged", "openai"] = "transformers"
    # Of the server: what "/completions" is put behind, such as http://127.0.0.1:8000/v1.
    server: Source | None = None
    # How it steers: "baked", as its weights say, at one strength; or by what requests bring, to the
    # package "vllm-lens" or "hotwire" in vLLM.
    steering: Literal["baked", "vllm-lens", "hotwire"] = "baked"
    # The model's name there; the only one that the server lists if null.
    served_model: str | None = None
    # The name of the environment variable that holds the key; never the key itself.
    key_variable: str = "OPENAI_API_KEY"
    # For one completion, seconds.
    timeout: float = Field(default=300.0, gt=0)
    attempts: int = Field(default=5, ge=1)
    # Requests under way at once.
    workers: int = Field(default=8, ge=1)

    @property
    def written_by(self) -> str:
        """What texts depend on: not how a server is asked, nor where it is."""
        return f"{self.name}, {self.steering}, {self.served_model}"

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _server_for_openai(self) -> EngineSettings:
        # No message repeats a value that may hold a key put in the wrong place.
        if self.name != "openai":
            if self.server is not None:
                raise ValueError(f"a server is of the engine openai, not of {self.name}")
        elif self.server is None:
            raise ValueError("the engine openai needs a server, such as http://127.0.0.1:8000/v1")
        elif not is_plain_address(self.server):
            raise ValueError(
                "the server is no plain http or https address, such as http://127.0.0.1:8000/v1, "
                "without user, password or query"
            )
        if not is_variable_name(self.key_variable):
            raise ValueError(
                "key_variable is no name of an environment variable such as OPENAI_API_KEY; never "
                "give the key itself"
            )
        return self
