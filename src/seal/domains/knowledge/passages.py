"""Files of passages with questions: SEAL's own form, SQuAD's (nested or flat), and data sets of the hub."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seal.records import Json, SealError

# ------------------------------------------------------------------------------------------------------ files

Text = Annotated[str, Field(pattern=r"\S")]
TITLE = 60
"""Characters of a passage that stand for its title, where it has none."""


class Passages(NamedTuple):
    """What a file holds, and what of it was left out or put in, in words."""

    rows: list[Json]
    notes: list[str]


class _Question(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    question: str
    answer: Text
    answers: Annotated[list[Text], Field(min_length=1)] | None = None
    """Every gold answer, the first one first; absent where there is one."""
    kind: str = "all"


class _Passage(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    title: str
    context: Text
    questions: Annotated[list[_Question], Field(min_length=1)]


def read_passages(path: Path, strict: bool = False) -> list[Json]:
    """The passages of a file (:func:`noted_passages`), without what there is to say of it."""
    return noted_passages(path, strict).rows


def noted_passages(path: Path, strict: bool = False) -> Passages:
    """Passages of a JSON file or of JSON Lines: SEAL's flat list, SQuAD's nested form, or its flat rows (one
    question each, as on the hub). Each has an id made of title and context, and the questions of records that
    share both are one passage's. All gold answers are kept.

    A record that is no passage is left out, and the first of them named; unanswerable questions are left out
    and counted; where a title is missing the passage's first words stand for it.

    Args:
        strict: refuse the file for a record that is no passage.

    Raises:
        SealError: the file is missing, is not JSON, holds no passage, or (``strict``) a record is none:
            which one, and why.
    """
    if str(path).startswith("hub:"):
        return _sound(Path(path), _from_hub(str(path)), strict)
    try:
        data = _json(path.read_bytes())
    except FileNotFoundError as error:
        raise SealError(f"there is no file {path}") from error
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SealError(f"{path} is not JSON: {error}") from error
    if isinstance(data, dict):  # SQuAD's whole file, or a page of the hub's viewer
        data = data.get("data", data.get("rows", [data] if "context" in data else None))
    if not isinstance(data, list) or not data:
        raise SealError(f"{path} holds no list of passages ({{title, context, questions}})")
    return _sound(path, data, strict)


def _json(data: bytes) -> Any:
    """A whole JSON text, or one for every line; in UTF-8, or what a byte order mark says."""
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    text = data.decode(next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8"))
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
            raise
        return [json.loads(lines[0]), *map(_line, lines[1:])]


class _Broken(str):
    """A line that is no JSON."""


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return _Broken(f"not JSON: {error}")


def _from_hub(name: str) -> list[Any]:
    """The rows of a data set of the hub, or of a local folder of one."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SealError(
            "data sets of the hub need the package datasets: pip install 'seal-lm[hub]'"
        ) from error
    where, _, split = name.removeprefix("hub:").partition(":")
    try:
        return [dict(row) for row in load_dataset(where, split=split or "train")]
    except Exception as error:  # of a library and a data set of someone else's
        first = " ".join(str(error).split())[:240]
        raise SealError(
            f"the data set {where!r} cannot be read as SQuAD's: {type(error).__name__}: {first}"
        ) from error


def _sound(path: Path, data: list[Any], strict: bool) -> Passages:
    """Records as passages, those that share title and context as one."""
    passages: dict[str, Json] = {}
    counts: Counter[str] = Counter()
    bad: list[str] = []
    for number, record in enumerate(data):
        try:
            for row in _flat(record, counts):
                passage = _Passage.model_validate(row).model_dump(exclude_unset=True)
                text = f"{passage['title']}\n{passage['context']}"
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                known = passages.setdefault(key, {**passage, "id": key, "questions": []})
                _add(known["questions"], passage["questions"])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            bad.append(f"passage {number}{', ' if where else ''}{where}: {first['msg']}")
        except UnicodeEncodeError:
            bad.append(f"passage {number} holds half a character (a lone surrogate)")
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            bad.append(f"passage {number}: {_said(record, error)}")
        if bad and strict:
            raise SealError(f"{path}: {bad[0]}")
    if not passages:
        why = bad[0] if bad else f"{counts['unanswerable']} questions, none of which has an answer"
        raise SealError(f"{path} holds no passage: {why}")
    notes = []
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        notes.append(f"{path}: left out {len(bad)} of {len(data)} records, {bad[0]}{more}")
    if n := counts["unanswerable"]:
        notes.append(f"{path}: left out {n} questions that have no answer")
    if n := counts["untitled"]:
        notes.append(f"{path}: {n} passages have no title; their first words stand for it")
    return Passages(list(passages.values()), notes)


def _said(record: Any, error: Exception) -> str:
    if isinstance(record, _Broken):
        return str(record)
    if not isinstance(record, dict):
        return f"a record is an object, not {type(record).__name__}"
    return f"it has no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"


def _add(known: list[Json], more: list[Json]) -> None:
    """Questions that are not there yet; to one that is, the gold answers it lacks."""
    for q in more:
        same = next(
            (k for k in known if {**k, "answer": 0, "answers": 0} == {**q, "answer": 0, "answers": 0}), None
        )
        if same is None:
            known.append(q)
            continue
        both = list(dict.fromkeys(x for k in (same, q) for x in (k["answer"], *(k.get("answers") or ()))))
        if len(both) > 1:
            same["answers"] = both


def _flat(record: Any, counts: Counter[str]) -> Iterator[Json]:
    """The passages of one record: SEAL's, an article of SQuAD's, or one of its rows with one question."""
    if isinstance(record, Mapping) and isinstance(record.get("row"), Mapping):  # a page of the hub's viewer
        record = record["row"]
    if isinstance(record, Mapping) and "paragraphs" in record:
        for paragraph in record["paragraphs"]:
            yield from _one(paragraph["context"], record.get("title"), paragraph["qas"], counts)
    elif isinstance(record, Mapping) and "question" in record and "questions" not in record:
        yield from _one(record["context"], record.get("title"), [record], counts)
    elif isinstance(record, Mapping) and isinstance(record.get("questions"), list):
        questions = [_golds(q) for q in record["questions"]]
        found = [q for q in questions if q is not None]
        counts["unanswerable"] += len(questions) - len(found)
        if found or not questions:
            yield {**_titled(record, counts), "questions": found}
    else:
        yield dict(record)


def _titled(record: Mapping[str, Any], counts: Counter[str]) -> Json:
    if record.get("title") or not isinstance(record.get("context"), str):
        return dict(record)
    counts["untitled"] += 1
    return {**record, "title": _first_words(record["context"])}


def _first_words(context: str) -> str:
    text = " ".join(context.split())
    return text if len(text) <= TITLE else text[:TITLE].rpartition(" ")[0] or text[:TITLE]


def _one(context: str, title: Any, questions: Any, counts: Counter[str]) -> Iterator[Json]:
    """A paragraph in SQuAD's form."""
    found = []
    for q in questions:
        answers = q["answers"]
        golds = answers["text"] if isinstance(answers, Mapping) else [a["text"] for a in answers]
        mine = _golds({"question": q["question"], "answers": list(golds)})
        if mine is None or q.get("is_impossible"):
            counts["unanswerable"] += 1
        else:
            found.append(mine)
    if found:
        named = {"title": title.replace("_", " ") if title else "", "context": context}
        yield {**_titled(named, counts), "questions": found}


def _golds(question: Any) -> Any:
    """A question with its answer, and all of them where there are several; ``None`` where there is none."""
    if not isinstance(question, Mapping) or "answers" not in question:
        return question
    golds = list(dict.fromkeys(question["answers"]))
    first = question.get("answer", golds[0] if golds else None)
    if first is None:
        return None
    golds = list(dict.fromkeys([first, *golds]))
    rest = {k: v for k, v in question.items() if k != "answers"}
    return {**rest, "answer": first, **({"answers": golds} if len(golds) > 1 else {})}
