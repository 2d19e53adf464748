"""The card of a taught adapter: what was read, what was written, what the model knows now, what got worse,
what it cost."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from seal.domains.grading import golds_of
from seal.records import Answers, Card, Json, Passage, Quiz, Told
from seal.stats import Interval, difference, interval, share
from seal.store import write_whole

SETTINGS = ("before", "after", "open book")
ENOUGH = 5
"""Passages with a proof below which nothing is concluded: an interval over fewer says nothing."""


def card_of(
    settings: Json,
    passages: Sequence[Passage],
    quiz: Sequence[Quiz],
    answers: Sequence[Answers],
    counts: dict[str, int],
    trained: dict[str, Json],
    skipped: Collection[str] = (),
    dropped: Collection[str] = (),
) -> Card:
    """Everything the card says, as JSON. Accuracy is over the proof half of the quiz, which nothing was
    chosen by; where a document's adapter was dropped, what counts as *after* is the answer without it."""
    answers = [
        {**a, "after": a["before"], "right": {**a["right"], "after": a["right"]["before"]}}
        if p["source"] in dropped
        else a
        for p, a in zip(passages, answers, strict=False)
    ]
    card: Card = {
        "settings": settings,
        "read": {"documents": len({p["source"] for p in passages}), "passages": len(passages)},
        "written": counts,
        "known already": len(skipped),
        "dropped": list(dropped),
        "quiz": {
            "drafted": sum(q["drafted"] for q in quiz),
            "sound": sum(q["sound"] for q in quiz),
            "proof": sum(x["half"] == "proof" for q in quiz for x in q["questions"]),
        },
        "training": {
            "adapters": len(trained),
            "steps": sum(t["steps"] for t in trained.values()),
            "tokens": sum(t["tokens"] for t in trained.values()),
        },
    }
    scores = {s: _scores(quiz, answers, s) for s in SETTINGS}
    if scores["after"]:
        card["accuracy"] = {s: _interval(interval([scores[s]])) for s in SETTINGS}
        card["gain"] = _interval(difference([scores["after"]], [scores["before"]]))
        card["silent"] = {
            "before": round(_silent(answers, "before"), 4),
            "after": round(_silent(answers, "after"), 4),
        }
        card["by kind"] = {
            kind: {s: round(sum(x) / len(x), 4) for s in SETTINGS if (x := _of_kind(quiz, answers, s, kind))}
            for kind in ("new", "known")
        }
        card["got worse"] = _worse(passages, quiz, answers)
        card["keep"] = (
            card["gain"]["low"] > 0 if len(scores["after"]) >= ENOUGH else None
        )  # None: too few to tell
    return card


def _proof(record: Quiz) -> list[int]:
    return [i for i, q in enumerate(record["questions"]) if q["half"] == "proof"]


def _scores(quiz: Sequence[Quiz], answers: Sequence[Answers], setting: str) -> list[float]:
    """One score per passage that has a question in its proof half."""
    rows = [[a["right"][setting][i] for i in _proof(q)] for q, a in zip(quiz, answers, strict=False)]
    return [sum(r) / len(r) for r in rows if r]


def _of_kind(quiz: Sequence[Quiz], answers: Sequence[Answers], setting: str, kind: str) -> list[bool]:
    pairs = zip(quiz, answers, strict=False)
    return [a["right"][setting][i] for q, a in pairs for i in _proof(q) if q["questions"][i]["kind"] == kind]


def _silent(answers: Sequence[Answers], setting: Literal["before", "after"]) -> float:
    texts = [t for a in answers for t in a[setting]]
    return sum(not t.strip() for t in texts) / max(1, len(texts))


def _worse(
    passages: Sequence[Passage], quiz: Sequence[Quiz], answers: Sequence[Answers]
) -> list[dict[str, str]]:
    """Questions that were answered rightly before, and are not now."""
    return [
        {
            "title": p["title"],
            "question": q["question"],
            "gold": " / ".join(golds_of(q)),
            "before": a["before"][i],
            "after": a["after"][i],
        }
        for p, record, a in zip(passages, quiz, answers, strict=False)
        for i, q in enumerate(record["questions"])
        if a["right"]["before"][i] and not a["right"]["after"][i]
    ]


def _interval(value: Interval) -> Told:
    return {"mean": round(value.mean, 4), "low": round(value.low, 4), "high": round(value.high, 4)}


def write_card(out: Path, card: Card) -> Card:
    """Write ``card.json`` and ``README.md`` under ``out``, where they are not yet; the card that is there
    now."""
    if not (out / "card.json").exists():
        write_whole(out / "README.md", markdown(card, out))
        write_whole(out / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    found: Card = json.loads((out / "card.json").read_text("utf-8"))
    return found


def markdown(card: Card, out: Path) -> str:
    """The card as people read it (and as the hub shows it)."""
    s, read, written = card["settings"], card["read"], card["written"]
    lines = [
        "---",
        f"base_model: {s['model']}",
        "library_name: peft",
        "tags: [seal, lora]",
        "---",
        "",
        f"# {out.name}: what {s['model']} was taught",
        "",
        f"{read['documents']} documents, {read['passages']} passages; {written['edits']} self-edits written "
        "by "
        f"{s['writer'] or s['policy'] or 'the model itself'} (prompt "
        f"*{s['prompt'] if len(s['prompt']) < 40 else 'own template'}*), "
        f"{written['bad edits']} of them unusable; {written['rows']} training rows, "
        f"{written['rows left out']} left out because they "
        f"held a question of the quiz. {card['training']['steps']} steps, {card['training']['tokens']} "
        "training tokens, "
        f"{card.get('seconds', 0):.0f} s in the last run."
        + (
            f" {card['known already']} passages were not taught: the model knew them already."
            if card["known already"]
            else ""
        )
        + (
            f" The adapters of {len(card['dropped'])} documents are not used: they did not help."
            if card["dropped"]
            else ""
        ),
        "",
    ]
    if "accuracy" in card:
        quiz = card["quiz"]
        verdict = {
            True: "It is worth keeping.",
            False: "The quiz does not show that it helped: think before you keep it.",
            None: f"Fewer than {ENOUGH} passages have a proof: too few to tell, and the intervals say "
            "nothing.",
        }[card["keep"]]
        known = card["by kind"]["known"].get("after")
        gain = card["gain"]
        lines += [
            "## What it knows now",
            "",
            f"The model drafted {quiz['drafted']} questions with the passages in view; {quiz['sound']} it "
            "answered the same way again. "
            f"The table is over the {quiz['proof']} that no edit was chosen by, graded by the string rule, "
            "without the passage unless said; "
            "with it in view they are right because only such questions were kept.",
            "",
            "| | accuracy | 95 % interval |",
            "|---|---|---|",
            *(
                f"| {n} | {v['mean']:.3f} | {v['low']:.3f} … {v['high']:.3f} |"
                for n, v in card["accuracy"].items()
            ),
            "",
            f"Gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]. {verdict} Silent: "
            f"{card['silent']['before']:.3f} before, "
            f"{card['silent']['after']:.3f} after."
            + (f" Of what it knew before, {known:.3f} is still right." if known is not None else ""),
            "",
            "## What got worse",
            "",
            "Of the whole quiz, answered rightly before and not now:",
            "",
            *(
                [
                    f"- {_plain(w['title'])}: {_plain(w['question'])} was *{_plain(w['before'])}*, is "
                    f"*{_plain(w['after'])}*"
                    for w in card["got worse"][:20]
                ]
                or ["- nothing"]
            ),
            "",
        ]
    else:
        lines += [
            "No quiz was asked for, or none of its questions was sound: there is no proof that it learnt "
            "anything.",
            "",
        ]
    lines += _retained(card.get("retained"))
    lines += [
        "## Use it",
        "",
        "```",
        f'seal ask "…" --adapter {out} --compare        # with and without it, side by side',
        "```",
        "",
        f"`{'adapters/' if s['per_document'] else 'adapter/'}` is PEFT's format: "
        "`PeftModel.from_pretrained(model, folder)` and vLLM's `--lora-modules` take it as it is; for llama.cpp: "
        f"`seal export {out} --kind gguf --out adapter.gguf`.",
        "",
    ]
    return "\n".join(lines)


def _retained(kept: Json | None) -> list[str]:
    """What it still knows of what nobody taught it."""
    if not kept:
        return []
    known, after = kept["known"], kept["kept"]
    now = share(sum(after), known * len(after))
    lost = [f"- {_plain(q)}" for q in kept["lost"][:10]]
    text = kept["perplexity"]
    return [
        "## What it still knows",
        "",
        f"Of {kept['items']} common questions with four choices the model had {known} right before (some by luck: a "
        f"guess has one in four). Of those it has {now.mean:.3f} [{now.low:.3f}, {now.high:.3f}] now"
        + (f", each of {len(after)} adapters asked by itself" if len(after) > 1 else "")
        + f". Perplexity of plain prose: {text['before']:.2f} before, "
        f"{sum(text['after']) / len(text['after']):.2f} now.",
        "",
        *(["Lost:", "", *lost, ""] if lost else []),
    ]


def _plain(text: str) -> str:
    """A model's text on one line of Markdown, with nothing in it that Markdown or HTML would take for its
    own."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in " ".join(text.split()))
