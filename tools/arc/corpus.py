"""What the embedded grid model is made of: puzzles of known families, and self-edits in JSON of every kind;
and its tokenizer.

A document is one training row. *Puzzles* stand in the very format of the inner loop's rows and of the test;
loss falls on the outputs (in one of six, later twelve, on everything). *Edits*: the prompt for a self-edit
with a puzzle's demonstrations, and a JSON object drawn from a broad distribution that knows nothing of the
puzzle, so that the untrained policy is diverse and mediocre.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from seal.domains.arc import Arc
from seal.domains.arc.domain import ASK_EDIT
from seal.domains.arc.families import Family, known_families, puzzle
from seal.domains.arc.grids import TURNS, Puzzle, as_digits, colour_permutation
from seal.records import Task

END = "<|end|>"
RATES = ("0.00001", "0.00003", "0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03")
MOST_EPOCHS = 6
EDITS = 0.15
"""Share of documents that are self-edits."""
SINGLE = 0.6
"""Share of puzzles that are of a single rule: two in a row are learnt after their parts."""
LATE = 150_000
"""Documents after which single rules are known: more pairs, more demonstrations, and fewer self-edits, whose
form is known too."""
EARLY = 30_000
"""Documents of the first phase: single rules on small grids, and no self-edits, because reading a rule off
demonstrations comes from what is dense in them."""


def random_edit(rng: random.Random) -> str:
    """Any valid choice, in the order and with the spaces of :data:`ASK_EDIT`."""
    names = ("basic", "size", "chain", "repeat")
    share = rng.uniform(0.2, 0.8)
    return json.dumps(
        {
            "data_generation": {f"use_{n}_augmentations": rng.random() < share for n in names},
            "training": {
                "strategy": f"train_using_{rng.choice(('all', 'output'))}_tokens",
                "learning_rate": "RATE",
                "num_train_epochs": rng.randint(1, MOST_EPOCHS),
            },
        }
    ).replace('"RATE"', rng.choice(RATES))


def parts(index: int, seed: int, singles: list[Family], pairs: list[Family]) -> list[tuple[str, bool]]:
    """Document number ``index``: pieces of text, and whether loss falls on them."""
    rng = random.Random(f"grids {seed} {index}")
    early, late = index < EARLY, index >= LATE
    family = rng.choice(singles if early or rng.random() < (0.45 if late else SINGLE) else pairs)
    n_shown = rng.choices((2, 3, 4, 5, 6), (1, 3, 3, 2, 2) if late else (1, 4, 3, 2, 0))[0]
    made = puzzle(
        family, f"pretrain {seed} {index}", n_shown, rng.choice((3, 4)) if early else rng.choice((4, 5, 6))
    )
    if rng.random() < 0.3:  # as the inner loop's augmentations leave them
        made = made.map(rng.choice(TURNS).apply)
    if rng.random() < 0.5:
        made = made.map(colour_permutation(rng).apply)
    if not early and rng.random() < (EDITS / 3 if late else EDITS):
        return [(edit_prompt(made, rng), False), (random_edit(rng), True)]
    whole = rng.random() < (1 / 12 if late else 1 / 6)
    found = []
    for pair in (*made.demonstrations, made.test):
        found += [
            (f"Input:\n{as_digits(pair.input)}\nOutput:\n", whole),
            (as_digits(pair.output), True),
            ("\n\n", whole),
        ]
    return found[:-1]


def edit_prompt(made: Puzzle, rng: random.Random) -> str:
    domain = Arc(
        limit=rng.choice((16, 24, 32)), max_steps=rng.choice((30, 60, 90)), batch_size=rng.choice((2, 4))
    )
    pairs = [{"input": p.input, "output": p.output} for p in made.demonstrations]
    return domain.prompt(Task("made", {"train": pairs})).text


def documents(seed: int, first: int = 0, stride: int = 1) -> Iterator[list[tuple[str, bool]]]:
    """The endless corpus of a seed, from document number ``first`` on, every ``stride``-th."""
    known = known_families()
    singles = [f for f in known if ", then " not in f.name]
    pairs = [f for f in known if ", then " in f.name]
    index = first
    while True:
        yield parts(index, seed, singles, pairs)
        index += stride


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per cell and per line break, one for each fixed phrase of the prompts and of the JSON; other
    text is bytes."""
    pieces = [*"0123456789", "\n", "\n\n", "Input:\n", "\nOutput:\n", "true", "false", *RATES]
    fixed = ASK_EDIT.replace("{{", "{").replace("}}", "}")
    pieces += [
        p
        for p in re.split(r"(\{cap\}|\{demonstrations\})", fixed)
        if p and not p.startswith(("{cap", "{demo"))
    ]
    pieces += ["At most ", " steps of ", " puzzles; there can be up to ", " puzzles."]
    pieces += [p for p in re.split(r"true|false|0\.0001|all|output|(?<=: )\d+", _example()) if p]
    pieces += ["all", "output"]
    vocabulary = [(s, 0.0) for s in ("<unk>", "<|pad|>", END)] + [(f"<0x{b:02X}>", -30.0) for b in range(256)]
    vocabulary += [(p, -2.0) for p in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|pad|>",
        eos_token=END,
        model_max_length=2048,
    )


def _example() -> str:
    flags = {f"use_{n}_augmentations": True for n in ("basic", "size", "chain", "repeat")}
    training = {"strategy": "train_using_all_tokens", "learning_rate": "RATE", "num_train_epochs": 1}
    return json.dumps({"data_generation": flags, "training": training}).replace('"RATE"', "0.0001")
