"""How much goes side by side in each wave of a stage: kept with it, so that a run that is resumed ends
bit-identical."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TypeVar

from seal.config import InnerConfig
from seal.lora.capacity import OutOfRoom, Room, room_for
from seal.lora.model import Model
from seal.lora.train import Job, Trained, train_adapters
from seal.store import Stage

T = TypeVar("T")


class Rooms:
    """A room for every wave. The same adapters meet in the same passes only under the same room, so each is on
    disk before a wave is worked on in it."""

    def __init__(self, stage: Stage, first: Callable[[], Room], name: str = "room") -> None:
        self.stage, self.name = stage, f"{name}-smaller"
        self.first = Room(**stage.once(name, lambda: asdict(first())))
        self.smaller = {int(n): Room(**room) for n, room in (stage.read(self.name) or {}).items()}
        """From a wave on."""

    def of(self, wave: int) -> Room:
        """The room of a wave, by its number."""
        return self.smaller.get(max((n for n in self.smaller if n <= wave), default=-1), self.first)

    def shrink(self, wave: int, room: Room) -> None:
        """From this wave on, a smaller one: memory has run out."""
        self.smaller[wave] = room
        self.stage.put(self.name, {str(n): asdict(room) for n, room in sorted(self.smaller.items())})
        print(
            f"seal: {self.stage.label}: memory ran out; from here on {room.tokens} tokens a pass"
            f"{', activations computed twice' if room.recompute else ''}",
            file=sys.stderr,
        )

    def within(self, wave: int, work: Callable[[Room], T]) -> T:
        """Do a wave's work in its room; where memory runs out, all over again in a smaller one."""
        while True:
            try:
                return work(self.of(wave))
            except OutOfRoom as error:
                self.shrink(wave, error.smaller)


def inner_rooms(model: Model, config: InnerConfig, stage: Stage) -> Rooms:
    """Of a stage of inner loops: what fits, unless the config says."""

    def first() -> Room:
        fits = room_for(model, [config.recipe])
        slots = fits.slots if config.slots == "auto" else config.slots
        return Room(slots, fits.tokens if config.pass_tokens == "auto" else config.pass_tokens)

    return Rooms(stage, first)


def train_once(model: Model, job: Job, stage: Stage) -> Trained:
    """The one finetune of a round, in a room that is kept under ``outer-room``."""
    rooms = Rooms(stage, lambda: replace(room_for(model, [job.recipe]), slots=1), "outer-room")
    return rooms.within(0, lambda room: train_adapters(model, [job], room)[0])
