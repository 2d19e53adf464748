"""Files of passages with questions: SEAL's own form, SQuAD's (nested or flat), and data sets of the hub."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
    except (ValueError, RecursionError) as error:
        raise SealError(f"{path} is not JSON: {error}") from error
    if isinstance(data, dict):  # SQuAD's whole file, or a page of the hub's viewer
        one = "context" in data or "paragraphs" in data
        data = data.get("data", data.get("rows", [data] if one else None))
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
        found = [_line(line) for line in lines]
        if not any(isinstance(x, dict) for x in found):
            raise
        return found


class _Broken(str):
    """A line that is no JSON."""


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
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
    parts: set[int] = set()
    whole = len(data)
    for number, record in enumerate(data):
        before = len(bad)

        def tell(why: str, number: int = number) -> None:
            parts.add(number)
            bad.append(f"passage {number}, {why}")

        try:
            if isinstance(record, _Broken):
                raise ValueError(str(record))
            for row in _flat(record, counts, tell):
                try:
                    passage = _Passage.model_validate(row).model_dump(exclude_unset=True)
                    json.dumps(passage, ensure_ascii=False).encode()
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    bad.append(f"passage {number}{', ' if where else ''}{where}: {first['msg']}")
                    continue
                text = f"{passage['title']}\n{passage['context']}"
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                known = passages.setdefault(key, {**passage, "id": key, "questions": []})
                _add(known["questions"], passage["questions"])
        except UnicodeEncodeError:
            bad.append(f"passage {number} holds half a character (a lone surrogate)")
        except _PART as error:
            bad.append(f"passage {number}: {_said(error)}")
        whole -= len(bad) > before
        if bad and strict:
            raise SealError(f"{path}: {bad[0]}")
    if not passages:
        why = bad[0] if bad else f"{counts['unanswerable']} questions, none of which has an answer"
        raise SealError(f"{path} holds no passage: {why}")
    notes = []
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        some = ", or part of them" if parts else ""
        notes.append(f"{path}: left out {len(data) - whole} of {len(data)} records{some}, {bad[0]}{more}")
    if n := counts["unanswerable"]:
        notes.append(f"{path}: left out {n} questions that have no answer")
    if n := counts["untitled"]:
        notes.append(f"{path}: {n} passages have no title; their first words stand for it")
    return Passages(list(passages.values()), notes)


def _said(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"


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


def _flat(record: Any, counts: Counter[str], bad: Callable[[str], None]) -> Iterator[Json]:
    """The passages of one record: SEAL's, an article of SQuAD's, or one of its rows with one question.
    ``bad`` is told of a part that is none; the others stay."""
    if isinstance(record, Mapping) and isinstance(record.get("row"), Mapping):  # a page of the hub's viewer
        record = record["row"]
    if not isinstance(record, Mapping):
        raise TypeError(f"a record is an object, not {type(record).__name__}")
    if isinstance(record.get("paragraphs"), list):
        for number, paragraph in enumerate(record["paragraphs"]):
            try:
                found = _passage(record.get("title"), paragraph["context"], paragraph["qas"], counts, bad)
                if found["questions"]:
                    yield found
            except _PART as error:
                bad(f"paragraph {number}: {_said(error)}")
    elif "question" in record and "questions" not in record:
        found = _passage(record.get("title"), record["context"], [record], counts, bad)
        if found["questions"]:
            yield found
    elif isinstance(record.get("questions"), list) and record["questions"]:
        rest = {k: v for k, v in record.items() if k not in ("title", "context", "questions")}
        found = _passage(
            record.get("title"), record["context"], record["questions"], counts, bad, squad=False
        )
        if found["questions"]:
            yield {**rest, **found}
    else:
        yield dict(record)


_PART = (KeyError, TypeError, AttributeError, IndexError, ValueError)
IMPOSSIBLE = (True, 1, "true", "True", "TRUE", "1")


def _passage(
    title: Any,
    context: Any,
    questions: Any,
    counts: Counter[str],
    bad: Callable[[str], None],
    squad: bool = True,
) -> Json:
    """A context and its questions, those that have an answer. Without any: no questions at all.

    Raises:
        ValueError: every question is none, or the title is no text.
    """
    if title is None or (isinstance(title, str) and not title.strip()):
        title = ""
    if not isinstance(title, str):
        raise ValueError(f"its title is {str(title)[:40]}, no text")
    if not isinstance(questions, list):
        raise ValueError("its questions are no list")
    found, wrong = [], []
    for number, q in enumerate(questions):
        try:
            mine = _asked(q, squad)
        except _PART as error:
            wrong.append(f"question {number}: {_said(error)}")
            continue
        if mine is None:
            counts["unanswerable"] += 1
        else:
            found.append(mine)
    if wrong and not found:
        raise ValueError(wrong[0])
    for why in wrong:
        bad(why)
    if not title and isinstance(context, str) and found:
        counts["untitled"] += 1
        title = _first_words(context)
    return {"title": title.replace("_", " ") if squad else title, "context": context, "questions": found}


def _first_words(context: str) -> str:
    text = " ".join(context.split())
    return text if len(text) <= TITLE else text[:TITLE].rpartition(" ")[0] or text[:TITLE]


def _asked(q: Any, squad: bool) -> Json | None:
    """A question with its answer, and all of them where there are several; ``None`` where it has none."""
    if not isinstance(q, Mapping):
        raise TypeError(f"a question is an object, not {type(q).__name__}")
    if q.get("is_impossible") in IMPOSSIBLE:
        return None
    if "answers" not in q and "answer" not in q:
        raise KeyError("answer")
    if "answers" not in q and not squad:
        return dict(q)  # SEAL's own, which is held to its form
    first = q.get("answer")
    golds = ([] if first is None else [first]) + _texts(q.get("answers"))
    golds = list(dict.fromkeys(g.strip() if isinstance(g, str) else g for g in golds))
    golds = [g for g in golds if g != ""]
    if not golds:
        return None
    if not all(isinstance(g, str) for g in golds):
        raise ValueError("an answer is no text")
    rest = {k: v for k, v in q.items() if k not in ("answers", "answer")}
    if squad:
        rest = {"question": q["question"]}
    return {**rest, "answer": golds[0], **({"answers": golds} if len(golds) > 1 else {})}


def _texts(answers: Any) -> list[Any]:
    """The gold answers, however they are given: SQuAD's list of objects, the hub's object of lists, texts, or one
    text. A number is its digits."""
    if answers is None:
        return []
    if isinstance(answers, Mapping):
        answers = answers["text"]
    if not isinstance(answers, list):
        answers = [answers]
    texts = [a["text"] if isinstance(a, Mapping) else a for a in answers]
    return [str(t) if isinstance(t, (int, float)) and not isinstance(t, bool) else t for t in texts]
