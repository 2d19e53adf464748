"""Files of passages with questions: SEAL's own form, SQuAD's, and data sets of the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seal.records import Json, SealError

# ------------------------------------------------------------------------------------------------------ files


class _Question(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    question: str
    answer: Annotated[str, Field(pattern=r"\S")]
    kind: str = "all"


class _Passage(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    title: str
    context: Annotated[str, Field(pattern=r"\S")]
    questions: Annotated[list[_Question], Field(min_length=1)]


def read_passages(path: Path) -> list[Json]:
    """Passages of a JSON file, SEAL's flat list or SQuAD's nested form, each with an id made of title and
    context. The questions of records that share both are one passage's; paragraphs of SQuAD without an
    answerable question are left out.

    Raises:
        SealError: the file is missing, is not JSON, or a record is not a passage (which one, and why).
    """
    if str(path).startswith("hub:"):
        return _from_hub(str(path))
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SealError(f"there is no file {path}") from error
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SealError(f"{path} is not JSON: {error}") from error
    try:
        rows = _squad(data) if isinstance(data, dict) and "data" in data else data
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise SealError(f"{path} is not in SQuAD's form: {type(error).__name__}: {error}") from error
    return _sound(path, rows)


def _from_hub(name: str) -> list[Json]:
    """A data set of the hub (or a local folder of one) whose rows are SQuAD's: title, context, question,
    answers."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SealError(
            "data sets of the hub need the package datasets: pip install 'seal-lm[hub]'"
        ) from error
    where, _, split = name.removeprefix("hub:").partition(":")
    try:
        rows = load_dataset(where, split=split or "train")
        records = [
            {
                "title": r["title"].replace("_", " "),
                "context": r["context"],
                "questions": [{"question": r["question"], "answer": r["answers"]["text"][0]}],
            }
            for r in rows
            if r["answers"]["text"]
        ]
    except Exception as error:  # of a library and a data set of someone else's
        first = " ".join(str(error).split())[:240]
        raise SealError(
            f"the data set {where!r} cannot be read as SQuAD's: {type(error).__name__}: {first}"
        ) from error
    return _sound(Path(name), records)


def _sound(path: Path, rows: Any) -> list[Json]:
    """Records as passages, those that share title and context as one."""
    if not isinstance(rows, list) or not rows:
        raise SealError(f"{path} holds no list of passages ({{title, context, questions}})")
    passages: dict[str, Json] = {}
    for number, row in enumerate(rows):
        try:
            passage = _Passage.model_validate(row).model_dump(exclude_unset=True)
            key = hashlib.sha256(f"{passage['title']}\n{passage['context']}".encode()).hexdigest()[:16]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise SealError(
                f"{path}: passage {number}{', ' if where else ''}{where}: {first['msg']}"
            ) from error
        except UnicodeEncodeError as error:
            raise SealError(f"{path}: passage {number} holds half a character (a lone surrogate)") from error
        known = passages.setdefault(key, {**passage, "id": key, "questions": []})
        known["questions"] += [q for q in passage["questions"] if q not in known["questions"]]
    return list(passages.values())


def _squad(data: Mapping[str, Any]) -> list[Json]:
    rows = [
        {
            "title": article["title"].replace("_", " "),
            "context": paragraph["context"],
            "questions": [
                {"question": q["question"], "answer": q["answers"][0]["text"]}
                for q in paragraph["qas"]
                if q.get("answers")
            ],
        }
        for article in data["data"]
        for paragraph in article["paragraphs"]
    ]
    return [row for row in rows if row["questions"]]
