"""Atlas: an invented world, generated from a seed, in which every evaluated fact is provably new to the
model.

An *entity* (town, ship, scholar, guild, garden) has a made-up name, a province, two **stated** facts, and
three **derived** ones whose value stands nowhere in its passage. Each is a sum of two things:

========== ============================================== ===================================
derivation the passage says                               the question wants
========== ============================================== ===================================
month      founded in March, walled two months later      the month of walling
weekday    market on Monday, council the third day after  the day of the council
count      four gates, a trio more towers                 the number of towers
facing     the gate faces north, the tower turned left    where the tower faces
custom     in Tarn; the sowing is in May (and everyone    the month of the harvest
           knows how many months the custom of Tarn asks)
========== ============================================== ===================================

The language lives in ``atlas.toml``; here are only the rules. Nothing in this module knows of models.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SPLITS = ("train", "select", "eval", "known", "pretrain")
"""Disjoint sets of entities: RL, choice of settings, evaluation; the embedded model's own general knowledge
(it saw these entities many times in pretraining) and its practice material (fresh in nearly every
document)."""

_STARTS = {"train": 0, "select": 2_000, "eval": 4_000, "known": 6_000, "pretrain": 8_000}
DERIVED = ("month", "weekday", "count", "facing", "custom")
N_KNOWN = 160
"""Entities that the embedded model has learnt by heart."""
N_STATED = 2
N_DERIVED = 3


@cache
def words() -> dict[str, Any]:
    """The language of the world, read once from ``atlas.toml``."""
    return tomllib.loads(Path(__file__).with_name("atlas.toml").read_text("utf-8"))


def values(kind: str) -> list[str]:
    """All values of a vocabulary: the candidates of a wrong answer."""
    table = words()
    if kind == "number":
        return str(table["numbers"]["words"]).split()[4:]
    return str(table["values"][kind]).split()


@dataclass(frozen=True)
class Fact:
    """One thing true of an entity. A derived value is the sum of ``base`` and ``gap``; the gap of a custom is
    that of the province ``land``, and is not told."""

    attribute: str
    value: str
    derived: bool
    base: str = ""
    gap: str = ""
    land: str = ""

    @property
    def kind(self) -> str:
        """The vocabulary the value comes from."""
        return {"count": "number", "custom": "month"}.get(self.attribute, self.attribute)

    @property
    def base_kind(self) -> str:
        """The vocabulary the base comes from."""
        return base_kind(self.attribute)


@dataclass(frozen=True)
class Entity:
    """A thing of the world: name, kind (town, ship, …), pronoun, province and facts in the order they are
    asked."""

    name: str
    kind: str
    pronoun: str
    province: str
    facts: tuple[Fact, ...]

    def fact(self, attribute: str) -> Fact:
        return next(f for f in self.facts if f.attribute == attribute)


def base_kind(attribute: str) -> str:
    """The vocabulary of the base of a derived fact."""
    return "month" if attribute == "custom" else attribute


def derive(attribute: str, base: str, gap: str) -> str:
    """The value that follows from a base and a gap: months, days and directions go round, numbers go up."""
    table = words()
    step = str(table["gaps"][attribute]).split().index(gap)
    if attribute == "count":
        numbers = str(table["numbers"]["words"]).split()
        return numbers[numbers.index(base) + step + 2]
    cycle = values(base_kind(attribute))
    move = (1, 2, 4, 6)[step] if attribute == "facing" else step + 2
    return cycle[(cycle.index(base) + move) % len(cycle)]


@cache
def _names() -> list[str]:
    syllables = words()["syllables"].split()
    names = [a + b + c for a in syllables for b in syllables for c in syllables if len({a, b, c}) == 3]
    random.Random("atlas names").shuffle(names)
    return [n.capitalize() for n in names]


def n_names() -> int:
    """How many distinct names the world holds (the last split, ``pretrain``, has all that the others
    leave)."""
    return len(_names())


def entity(split: str, index: int, seed: int = 0) -> Entity:
    """Entity number ``index`` of a split; the same arguments always give the same entity.

    Raises:
        IndexError: the split holds fewer entities than that.
    """
    start = _STARTS[split]
    stop = min((s for s in _STARTS.values() if s > start), default=n_names())
    if not 0 <= index < stop - start:
        raise IndexError(f"the split {split!r} holds {stop - start} entities; there is no number {index}")
    rng = random.Random(f"atlas {seed} {split} {index}")
    table = words()
    kind = rng.choice(list(table["kind"]))
    this = table["kind"][kind]
    province = rng.choice(values("province"))
    stated = [a for a in this if a in table["values"] and a != "province" and a not in DERIVED]
    facts = [Fact(a, rng.choice(values(a)), derived=False) for a in rng.sample(stated, N_STATED)]
    facts += [_sum(attribute, province, rng) for attribute in rng.sample(DERIVED, N_DERIVED)]
    pronoun = rng.choice(("she", "he")) if this.get("person") else "it"
    return Entity(_names()[start + index], kind, pronoun, province, tuple(facts))


def _sum(attribute: str, province: str, rng: random.Random) -> Fact:
    table = words()
    base = rng.choice(values(base_kind(attribute)))
    if attribute == "custom":
        gap = str(table["knowledge"]["custom"]).split()[values("province").index(province)]
    else:
        gap = rng.choice(str(table["gaps"][attribute]).split())
    return Fact(attribute, derive(attribute, base, gap), derived=True, base=base, gap=gap, land=province)


# --------------------------------------------------------------------------------------------------- language

_POSSESSIVE = {"it": "its", "she": "her", "he": "his"}


def fill(template: str, who: Entity, form: str = "name", *, v: str = "", g: str = "", d: str = "") -> str:
    """A template of ``atlas.toml`` as a sentence, the entity named in ``form``: name, noun (*the town*) or
    pronoun."""
    this = words()["kind"][who.kind]
    noun = f"the {this['noun']}"
    subject = {"name": who.name, "noun": noun, "pronoun": who.pronoun}[form]
    slots = {
        "N": who.name,
        "X": subject,
        "x": subject,
        "Xs": _POSSESSIVE[who.pronoun] if form == "pronoun" else f"{subject}'s",
        "n": noun if form == "pronoun" else subject,
        "its": _POSSESSIVE[who.pronoun],
        "v": v,
        "g": g,
        "d": d,
    }
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def phrases(who: Entity, attribute: str, form: str) -> list[str]:
    """The templates of ``say``, ``ask``, ``base``, ``gap`` or ``both`` for an attribute of this kind of
    entity."""
    derive_ = words()["derive"]
    if attribute in derive_:
        ends = words()["kind"][who.kind].get(attribute, {})
        said = derive_[attribute][form]
        return [
            t.replace("{first}", ends.get("first", "")).replace("{second}", ends.get("second", ""))
            for t in said
        ]
    return list(words()["kind"][who.kind][attribute][form])


def state(who: Entity, fact: Fact, rng: random.Random, form: str = "name", value: str | None = None) -> str:
    """The fact (or, with ``value``, a wrong one) in one sentence of the world's several."""
    value = fact.value if value is None else value
    return fill(rng.choice(phrases(who, fact.attribute, "say")), who, form, v=value, d=value)


def ask(who: Entity, fact: Fact, phrasing: int) -> str:
    """The question for a fact; phrasing 0 is held out of everything an edit may contain."""
    return fill(phrases(who, fact.attribute, "ask")[phrasing], who)


def spell(fact: Fact, rng: random.Random) -> str:
    """The general truth behind a derived fact: the sum, spelled out."""
    text = str(rng.choice(words()["sum"][fact.attribute])).format(
        v=fact.base, g=fact.gap, d=fact.value, land=fact.land
    )
    return text[0].upper() + text[1:]


def _told(
    who: Entity, fact: Fact, rng: random.Random, apart: bool
) -> list[list[tuple[str, Mapping[str, str]]]]:
    """What the passage says for a fact, in groups of sentences that stay together, each a (template, values)
    pair.

    ``apart``: base and gap of a derived fact in two sentences (next to each other or not) instead of one.
    """
    slots: Mapping[str, str] = {"v": fact.base if fact.derived else fact.value, "g": fact.gap}
    if not (fact.derived and apart):
        return [[(rng.choice(phrases(who, fact.attribute, "both" if fact.derived else "say")), slots)]]
    pair = [(rng.choice(phrases(who, fact.attribute, form)), slots) for form in ("base", "gap")]
    return [pair] if rng.random() < 0.5 else [[p] for p in pair]


def passage(who: Entity, rng: random.Random) -> str:
    """Six or seven sentences, in shuffled order, most of them speaking of the entity by noun or pronoun."""
    split = rng.choice(who.facts)  # the one fact told in two sentences, if it is a derived one
    groups = [group for f in who.facts for group in _told(who, f, rng, apart=f is split)]
    rng.shuffle(groups)
    if not split.derived and rng.random() < 0.5:
        groups.insert(rng.randrange(len(groups) + 1), [(rng.choice(words()["vague"]), {})])
    sentences = [fill(rng.choice(words()["kind"][who.kind]["intro"]), who, v=who.province)]
    for template, slots in (pair for group in groups for pair in group):
        form = rng.choices(("name", "noun", "pronoun"), (2, 3, 5))[0]
        sentences.append(fill(template, who, form, **slots))
    return " ".join(sentences)


def record(split: str, index: int, seed: int = 0) -> dict[str, Any]:
    """Entity number ``index`` as a knowledge record: ``{id, title, context, questions: [{question, answer,
    kind}], oracle}`` (the passages' own format, SEAL's, with the kind of each question and a perfect
    self-edit besides).

    A derived answer never stands in the context: where chance put it there, other facts are drawn. Not so of
    the *known* entities, whose facts are those that the model has learnt: there the passage is told
    differently, and where that does not help the answer may be read.
    """
    for attempt in range(100):
        who = entity(split, index, seed if attempt == 0 or split == "known" else seed + 7919 * attempt)
        rng = random.Random(f"atlas passage {seed} {split} {index} {attempt}")
        text = passage(who, rng)
        told = set(text.replace(".", "").replace(",", "").split())
        if not any(f.derived and f.value in told for f in who.facts):
            break
    questions = [
        {
            "question": ask(who, f, 0),
            "answer": f.value,
            "kind": "derived" if f.derived else "stated",
            "about": f.attribute,
        }
        for f in who.facts
    ]
    return {
        "id": f"{split}-{index}",
        "title": who.name,
        "context": text,
        "questions": questions,
        "oracle": oracle(who, random.Random(f"oracle {seed} {split} {index}")),
    }


def qa_line(who: Entity, fact: Fact, rng: random.Random, value: str | None = None) -> str:
    """A question and its answer on one line, in a phrasing that is not held out."""
    return f"Question: {ask(who, fact, rng.choice((1, 2)))} Answer: {fact.value if value is None else value}."


def oracle(who: Entity, rng: random.Random) -> str:
    """A perfect self-edit: every fact, stated and derived, once as a sentence that names the entity and once
    as a question with its answer."""
    lines = [line for f in who.facts for line in (state(who, f, rng), qa_line(who, f, rng))]
    rng.shuffle(lines)
    return "\n".join(lines)
