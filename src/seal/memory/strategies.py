"""How what was learnt is kept while more is learnt: the strategies of the continual experiment, each a small
class.

A sequence's memory is a list of adapters. Most strategies keep one, which is in force while the next is
trained (the same as merged weights, so many sequences go side by side on one model); ``library`` keeps them
apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from seal.lora.adapter import Adapter, adapted_modules, away_from, init_adapter, join
from seal.lora.model import Model
from seal.lora.train import Job
from seal.records import Example, Recipe, SealError

Rows = tuple[Example, ...]


@dataclass
class Memory:
    """What one sequence has so far: its adapters, and the training rows of every edit."""

    adapters: list[Adapter] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)

    @property
    def whole(self) -> Adapter | None:
        """What is in force."""
        return self.adapters[0] if self.adapters else None


class Strategy:
    """``merge``: every adapter is added to the weights for good, W ← W + B A (the SEAL paper)."""

    apart = False
    """Whether the adapters stay apart, and a router picks one for each question."""
    own = False
    """Whether it trains on samples of the untouched model."""
    gate = False
    """Whether an adapter is scaled down, or dropped, where it harms what was known."""

    def rows(self, memory: Memory, new: Rows, own: Rows, rng: random.Random) -> Rows:
        """What the new adapter is trained on; ``own`` are samples of the model as it was before any edit."""
        return new

    def job(self, policy: Model, memory: Memory, rows: Rows, new: Rows, recipe: Recipe, seed: int) -> Job:
        return Job(rows, recipe, seed, beneath=memory.whole)

    def weight(self, number: int) -> float:
        """How much of adapter ``number`` (1, 2, …) is added."""
        return 1.0

    def keep(self, memory: Memory, adapter: Adapter, weight: float) -> list[Adapter]:
        return [join(memory.whole, adapter, weight)]


class Replay(Strategy):
    """Rehearsal (Robins 1995; for sequential LoRA see TRACE, Wang et al. 2023): rows of earlier edits take
    ``share`` of the budget."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = _share("replay", share)

    def rows(self, memory: Memory, new: Rows, own: Rows, rng: random.Random) -> Rows:
        past = [row for rows in memory.rows for row in rows]
        return (*new, *_some(past, _as_many(len(new), self.share), rng))


class OwnSamples(Strategy):
    """Distillation on text (Kim & Rush 2016) that the model as it was before any edit has written by itself:
    ``share`` of the budget."""

    own = True

    def __init__(self, share: float = 0.3) -> None:
        self.share = _share("own", share)

    def rows(self, memory: Memory, new: Rows, own: Rows, rng: random.Random) -> Rows:
        return (*new, *_some(own, _as_many(len(new), self.share), rng))


class LastLayers(Strategy):
    """Only the last ``n`` layers are trained: what lies below stays as it was (the paper's own suggestion,
    among many)."""

    def __init__(self, n: float = 2) -> None:
        self.n = int(n)

    def job(self, policy: Model, memory: Memory, rows: Rows, new: Rows, recipe: Recipe, seed: int) -> Job:
        return Job(rows, recipe.model_copy(update={"last_layers": self.n}), seed, beneath=memory.whole)


class Orthogonal(Strategy):
    """A new adapter reads only directions that no earlier one reads, and trains B alone (O-LoRA, Wang et al.
    2023, made a hard constraint as in InfLoRA, Liang & Li 2024)."""

    def job(self, policy: Model, memory: Memory, rows: Rows, new: Rows, recipe: Recipe, seed: int) -> Job:
        fresh = init_adapter(adapted_modules(policy.runner, recipe), recipe, seed)
        return Job(
            rows, recipe, seed, start=away_from(fresh, memory.whole), beneath=memory.whole, only_b=True
        )


class Fading(Strategy):
    """``slao``: adapter i is added with weight 1/√i (SLAO's merge weight)."""

    def weight(self, number: int) -> float:
        return float(number**-0.5)


class Gate(Strategy):
    """An adapter that costs more than a point of what was known before (probes that the evaluation does not
    use) is added at 0.7, at 0.4, or not at all. B alone is scaled: both would square it."""

    gate = True


class Library(Strategy):
    """Nothing is merged: every edit keeps its adapter, and can be listed and deleted; a router picks one by
    the question alone."""

    apart = True

    def job(self, policy: Model, memory: Memory, rows: Rows, new: Rows, recipe: Recipe, seed: int) -> Job:
        return Job(rows, recipe, seed)

    def keep(self, memory: Memory, adapter: Adapter, weight: float) -> list[Adapter]:
        return [*memory.adapters, adapter]


class Consolidate(Strategy):
    """At every step one adapter is trained anew, on the rows of all edits so far: the budget grows with them
    (reported)."""

    def rows(self, memory: Memory, new: Rows, own: Rows, rng: random.Random) -> Rows:
        return (*(row for rows in memory.rows for row in rows), *new)

    def job(self, policy: Model, memory: Memory, rows: Rows, new: Rows, recipe: Recipe, seed: int) -> Job:
        edits = sum(map(len, memory.rows)) + len(new)
        times = (
            (len(memory.rows) + 1) * len(rows) / max(1, edits)
        )  # what else is trained on is not taken from the edits' share
        grown = (
            recipe.model_copy(update={"tokens": round(recipe.tokens * times)}) if recipe.tokens else recipe
        )
        return Job(rows, grown, seed)

    def keep(self, memory: Memory, adapter: Adapter, weight: float) -> list[Adapter]:
        return [adapter]


class Combined(Strategy):
    """Several at once, ``replay:0.5+own:0.2+slao``: each part adds its rows to those before it (own samples
    are a fifth of all here), the training is that of the one that has its own, and the smallest weight
    counts."""

    def __init__(self, parts: Sequence[Strategy]) -> None:
        self.parts = parts
        self.apart = any(p.apart for p in parts)
        self.own = any(p.own for p in parts)
        self.gate = any(p.gate for p in parts)
        self.trains = next((p for p in parts if type(p).job is not Strategy.job), parts[0])
        self.keeps = next((p for p in parts if type(p).keep is not Strategy.keep), parts[0])

    def rows(self, memory: Memory, new: Rows, own: Rows, rng: random.Random) -> Rows:
        rows = new
        for part in self.parts:  # each adds its share of what there is then
            rows = part.rows(memory, rows, own, rng)
        return rows

    def job(self, policy: Model, memory: Memory, rows: Rows, new: Rows, recipe: Recipe, seed: int) -> Job:
        return self.trains.job(policy, memory, rows, new, recipe, seed)

    def weight(self, number: int) -> float:
        return min(p.weight(number) for p in self.parts)

    def keep(self, memory: Memory, adapter: Adapter, weight: float) -> list[Adapter]:
        return self.keeps.keep(memory, adapter, weight)


STRATEGIES: dict[str, type[Strategy]] = {
    "merge": Strategy,
    "replay": Replay,
    "own": OwnSamples,
    "last": LastLayers,
    "orthogonal": Orthogonal,
    "slao": Fading,
    "gate": Gate,
    "library": Library,
    "consolidate": Consolidate,
}


def strategy(name: str) -> Strategy:
    """A strategy by name, with a number where it takes one, several joined by ``+``: ``replay:0.3+slao``.

    Raises:
        SealError: there is none of that name, or it takes no such number.
    """
    parts = []
    for piece in name.split("+"):
        kind, _, number = piece.partition(":")
        if kind not in STRATEGIES:
            raise SealError(
                f"no retention strategy is named {kind!r}; there are: {', '.join(STRATEGIES)}, and several "
                "joined by +"
            )
        try:
            parts.append(STRATEGIES[kind](float(number)) if number else STRATEGIES[kind]())  # type: ignore[call-arg]
        except (TypeError, ValueError) as error:
            raise SealError(f"the retention strategy {kind!r} takes no {number!r}") from error
    return parts[0] if len(parts) == 1 else Combined(parts)


def _share(name: str, share: float) -> float:
    if not 0 < share < 1:
        raise SealError(f"{name}: the share of the budget lies between 0 and 1, not {share}")
    return share


def _as_many(n: int, share: float) -> int:
    """Rows that make up ``share`` of all, beside ``n`` others."""
    return round(n * share / (1 - share))


def _some(rows: Sequence[Example], n: int, rng: random.Random) -> list[Example]:
    return rng.sample(list(rows), min(n, len(rows)))
