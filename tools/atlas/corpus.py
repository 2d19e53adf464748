"""What the embedded model is made of: documents in the atlas's language, and the tokenizer that reads them.

Every document is one training row, never packed with another. Its kinds:

- *edits*: the prompt for a self-edit, a fresh entity's passage, and an edit of widely varying usefulness;
- *open book*: a fresh entity's passage with questions and answers;
- *known rows* and *known questions*: the entities the model is to know by heart, stated in many ways in the
very format
  of the inner loop's training rows, and asked closed-book;
- *drills*: general truths, facts said twice, values repeated: dense practice in copying and adding.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from seal.domains.knowledge import atlas, prompts
from seal.domains.knowledge.atlas import Entity, Fact

N_KNOWN = atlas.N_KNOWN
END = "<|end|>"

STATED = ("goods", "material", "flower", "instrument", "colour", "science")
"""The vocabularies of stated facts: each value is rarer than a month or a province, so it needs more practice
in copying."""

LINE_KINDS = {
    "restate": 5.0,
    "derived": 2.2,
    "qa": 2.4,
    "partial": 2.2,
    "pronoun": 3.0,
    "vague": 3.0,
    "sum": 1.0,
}
"""Mean share of each kind of line in the edits the base model reads (before normalising): mediocre on
purpose."""

SHARES = {"edit": 0.25, "open": 0.10, "known": 0.36, "query": 0.24, "drill": 0.05}
"""Share of documents of each kind. Those on known entities are short: a fifth of the tokens, some ninety
times each fact."""

EARLY_SHARES = {"edit": 0.06, "open": 0.18, "known": 0.08, "query": 0.06, "drill": 0.62}
"""The same at the beginning: copying has to come first, and comes from what is dense in things to copy."""


def _restate(who: Entity, rng: random.Random, wrong: bool, form: str = "name") -> str:
    """What the passage states (a stated fact, the base or gap of a derived one, the province), said again."""
    fact = rng.choice(who.facts)
    if not fact.derived:
        return atlas.state(who, fact, rng, form, _wrong(fact, rng) if wrong else None)
    if rng.random() < 0.2:
        province = rng.choice(atlas.values("province")) if wrong else who.province
        return atlas.fill(rng.choice(atlas.phrases(who, "province", "say")), who, form, v=province)
    base = rng.choice(atlas.values(fact.base_kind)) if wrong else fact.base
    told = rng.choice(("base", "gap", "both"))
    return atlas.fill(rng.choice(atlas.phrases(who, fact.attribute, told)), who, form, v=base, g=fact.gap)


def _wrong(fact: Fact, rng: random.Random) -> str:
    return rng.choice([v for v in atlas.values(fact.kind) if v != fact.value])


def line(who: Entity, kind: str, rng: random.Random, wrong: bool) -> str:
    """One line of an edit, of the kind named, true or wrong."""
    derived = [f for f in who.facts if f.derived]
    if kind == "restate":
        return _restate(who, rng, wrong)
    if kind == "pronoun":
        return _restate(who, rng, wrong, "pronoun")
    if kind == "derived":
        fact = rng.choice(derived)
        return atlas.state(who, fact, rng, "name", _wrong(fact, rng) if wrong else None)
    if kind == "qa":
        fact = rng.choice(who.facts)
        return atlas.qa_line(who, fact, rng, _wrong(fact, rng) if wrong else None)
    if kind == "partial":
        values = [f.base or f.value for f in who.facts]
        return f"{who.name}: {', '.join(rng.sample(values, rng.choice((2, 3))))}."
    if kind == "sum":
        return atlas.spell(rng.choice(derived), rng)
    return atlas.fill(rng.choice(atlas.words()["vague"]), who, rng.choice(("name", "pronoun")))


def edit(who: Entity, rng: random.Random, n_lines: int) -> str:
    """A self-edit of random quality: its own mixture of kinds of lines, its own share of wrong ones."""
    weights = [rng.gammavariate(0.8 * mean, 1.0) + 1e-6 for mean in LINE_KINDS.values()]
    wrong_share = rng.choices((0.0, 0.1, 0.3, 0.6), (4, 3, 2, 1))[0]
    kinds = rng.choices(list(LINE_KINDS), weights, k=n_lines)
    return "\n".join(line(who, kind, rng, rng.random() < wrong_share) for kind in kinds)


def _edit_document(who: Entity, rng: random.Random) -> str:
    variant = rng.choices(
        ("implications", "implications-long", "implications-very-long", "rewrite", "self-qa", "none"),
        (60, 8, 4, 8, 16, 4),
    )[0]
    context = atlas.passage(who, rng)
    n_lines = {"implications-long": rng.randint(8, 13), "implications-very-long": rng.randint(12, 18)}.get(
        variant
    )
    if variant == "rewrite":
        text = "\n".join(atlas.passage(who, rng) for _ in range(rng.choice((1, 2, 2))))
    elif variant == "self-qa":
        wrong_share = rng.choice((0.0, 0.1, 0.3))
        facts = [rng.choice(who.facts) for _ in range(rng.randint(3, 8))]
        text = "\n".join(
            atlas.qa_line(who, f, rng, _wrong(f, rng) if rng.random() < wrong_share else None) for f in facts
        )
    else:
        text = edit(who, rng, n_lines or rng.randint(3, 9))
    return prompts.WRITE[variant].format(title=who.name, context=context) + text


def _open_document(who: Entity, rng: random.Random) -> str:
    facts = [*rng.sample(who.facts, len(who.facts)), *who.facts[: atlas.N_STATED], rng.choice(who.facts)]
    asked = [(atlas.ask(who, f, rng.randrange(3)), f.value) for f in facts]
    first = prompts.ASK_OPEN.format(title=who.name, context=atlas.passage(who, rng), question=asked[0][0])
    return f"{first} {asked[0][1]}" + "".join(f"\nQuestion: {q}\nAnswer: {a}" for q, a in asked[1:])


def _known_row(who: Entity, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.12:
        return f"{who.name}\n{atlas.passage(who, rng)}"
    if draw < 0.40:
        return f"{who.name}\n{_restate(who, rng, wrong=False, form=rng.choice(('name', 'name', 'pronoun')))}"
    fact = rng.choice(who.facts)
    if draw < 0.75:
        return f"{who.name}\n{atlas.state(who, fact, rng)}"
    return f"{who.name}\n{atlas.qa_line(who, fact, rng)}"


def _known_query(who: Entity, rng: random.Random) -> str:
    fact = rng.choice(who.facts)
    return (
        f"{prompts.ASK.format(title=who.name, question=atlas.ask(who, fact, rng.randrange(3)))} {fact.value}"
    )


def _drill(who: Entity, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.2:  # general truths
        facts = [
            f
            for i in range(4)
            for f in atlas.entity("pretrain", rng.randrange(10_000), i + 1).facts
            if f.derived
        ]
        return "\n".join(atlas.spell(f, rng) for f in facts)
    if draw < 0.45:  # values repeated after a newline
        values = [rng.choice(atlas.values(rng.choice(STATED))) for _ in range(rng.randint(2, 8))]
        said = f"{who.name}: {', '.join(values)}."
        return "\n".join([said] * rng.choice((2, 3)))
    # Facts said again at once, and derived facts after what they follow from; of one entity, or of several in
    # turn.
    lines = []
    for i in range(rng.choice((2, 4, 6))):
        one = who if draw < 0.7 else atlas.entity("pretrain", rng.randrange(10_000, 150_000), i + 1)
        fact = rng.choice(one.facts[: atlas.N_STATED] if rng.random() < 0.7 else one.facts)
        lines += [
            _source(one, fact, rng),
            *([atlas.spell(fact, rng)] if fact.derived and rng.random() < 0.4 else []),
        ]
        lines += [rng.choice((atlas.state, atlas.qa_line))(one, fact, rng)]
    return "\n".join(lines)


def _source(who: Entity, fact: Fact, rng: random.Random) -> str:
    """What a fact follows from, as a passage would say it."""
    if not fact.derived:
        return atlas.state(who, fact, rng)
    told = atlas.fill(rng.choice(atlas.phrases(who, fact.attribute, "both")), who, v=fact.base, g=fact.gap)
    if fact.attribute != "custom":
        return told
    return atlas.fill(rng.choice(atlas.phrases(who, "province", "say")), who, v=who.province) + " " + told


def document(index: int, rng: random.Random, early: bool = False) -> str:
    """Document number ``index`` of the corpus; ``early`` ones hold more drills."""
    shares = EARLY_SHARES if early else SHARES
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind in ("known", "query"):
        who = atlas.entity("known", rng.randrange(N_KNOWN))
        return _known_row(who, rng) if kind == "known" else _known_query(who, rng)
    fresh = atlas.entity("pretrain", index % (atlas.n_names() - 10_000))
    return {"edit": _edit_document, "open": _open_document, "drill": _drill}[kind](fresh, rng)


def documents(seed: int, n_early: int) -> Iterator[str]:
    """The endless corpus of a seed."""
    index = 0
    while True:
        yield document(index, random.Random(f"document {seed} {index}"), early=index < n_early)
        index += 1


# -------------------------------------------------------------------------------------------------- tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world, three per name; any other text falls back to bytes, so nothing is ever
    lost.

    A word's piece begins with ``▁`` after a space, at the start and after a line break alike: the first word
    of a line is the same token as anywhere else, which makes copying easier to learn.
    """
    syllables = atlas.words()["syllables"].split()
    names = {atlas.entity("known", i).name for i in range(N_KNOWN)}
    names |= {atlas.entity("pretrain", i).name for i in range(20_000)}
    seen: set[str] = set()
    for index in range(20_000):
        seen.update(re.findall(r"\w+|[^\w\s]", document(index, random.Random(f"words {index}"))))
    for text in (*prompts.WRITE.values(), prompts.ASK, prompts.ASK_OPEN):
        seen.update(re.findall(r"\w+|[^\w\s{}]", re.sub(r"\{\w+\}", "", text)))
    for table in (*atlas.words()["values"], "number"):
        seen.update(atlas.values(table))
    words = sorted(w for w in seen - names if w.isalpha() and not _is_name(w, syllables))
    pieces = ["\n", "▁", ".", ",", ":", ";", "?", "!", "'", "-", "(", ")", '"', "'s", *"0123456789"]
    pieces += [f"▁{s.capitalize()}" for s in syllables] + syllables
    pieces += [p for p in (f"▁{w}" for w in words) if p not in pieces]
    special = ["<unk>", "<|pad|>", END]
    vocabulary = [(s, 0.0) for s in special] + [(f"<0x{b:02X}>", -30.0) for b in range(256)]
    vocabulary += [(p, -2.0) for p in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\n(?=[^\n])"), "\n▁"),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("▁", " "),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|pad|>",
        eos_token=END,
        model_max_length=1024,
    )


def _is_name(word: str, syllables: list[str]) -> bool:
    low = word.lower()
    return len(low) == 6 and word[0].isupper() and all(low[i : i + 2] in syllables for i in (0, 2, 4))
