"""Run folders as they should not be: the page is shown all the same, and says what is wrong."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `ui` is not installed")

from seal.ui.app import Pages, make_app
from seal.ui.data import AttemptsFile
from tests.ui.test_ui import attempt, make_run


class Web:
    """The app without a server: a page's status and text."""

    def __init__(self, root: Path) -> None:
        self.app = make_app(root, ["test"])

    def get(self, address: str) -> tuple[int, str]:
        path, _, query = address.partition("?")
        sent: list[Any] = []
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": query.encode(), "headers": [(b"host", b"test")], "scheme": "http",
            "server": ("test", 80), "client": ("test", 1), "http_version": "1.1",
        }  # fmt: skip

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        with suppress(Exception):  # what a page of errors was shown for is raised once more, for the log
            asyncio.run(self.app(scope, receive, send))
        body = b"".join(m.get("body", b"") for m in sent[1:])
        return sent[0]["status"], body.decode()


@pytest.mark.parametrize(
    "line",
    [
        attempt("b", 0, float("nan")),
        attempt("b", 0, 0.5, answers=None),
        attempt("b", 0, 0.5, text="\udc80"),
        attempt("b", 0, 0.5, before="half"),
        '{"task": "b", "edit":\n',
        "[]\n",
        '"text"\n',
    ],
)
def test_an_odd_row_hides_no_other(line: str, tmp_path: Path) -> None:
    make_run(tmp_path, "odd", attempt("a", 0, 0.5) + line + attempt("c", 0, 0.75))
    files = AttemptsFile(tmp_path / "odd/seal/round-1/attempts.jsonl").refresh()
    web = Web(tmp_path)
    for page in ("/run?name=odd", "/stage?name=odd&stage=seal/round-1"):
        assert web.get(page)[0] == 200, page
    told = web.get("/stage?name=odd&stage=seal/round-1")[1]
    assert ("1 lines of attempts.jsonl are no attempts" in told) == ("b" not in files.by_task)
    assert "c" in AttemptsFile(tmp_path / "odd/seal/round-1/attempts.jsonl").refresh().by_task
    for task in "abc":
        assert web.get(f"/task?name=odd&stage=seal/round-1&task={task}")[0] in (200, 404)


def test_a_run_whose_name_is_no_text_stands_in_the_list(tmp_path: Path) -> None:
    make_run(tmp_path, "sound", attempt("a", 0, 0.5))
    make_run(tmp_path, "bad", attempt("a", 0, 0.5)).rename(tmp_path / os.fsdecode(b"bad\xff"))
    status, text = Web(tmp_path).get("/")
    assert status == 200 and "sound" in text and "bad?" in text


def test_pages_that_compute_hold_up_no_other() -> None:
    """Starlette runs plain functions in threads."""
    for name in ("runs", "run", "stage", "task", "words", "continual", "compare"):
        assert not inspect.iscoroutinefunction(getattr(Pages, name))


def test_a_document_that_could_not_be_begun_with_says_why(tmp_path: Path) -> None:
    desk = tmp_path / ".taught/taught-x-1"
    desk.mkdir(parents=True)
    (desk / "log.txt").write_text("something\nseal: x.pdf cannot be read: no pages\n")
    _, text = Web(tmp_path).get("/taught?name=taught-x-1")
    assert "x.pdf cannot be read: no pages" in text and "there is no run" not in text
    assert "there is no run" in Web(tmp_path).get("/taught?name=taught-y-1")[1]


def test_what_else_differs_between_two_runs_is_said(tmp_path: Path) -> None:
    def result(folder: Path, fingerprint: str, **of: Any) -> None:
        record = {
            "tasks": ["x", "y"], "fingerprint": fingerprint, "of": of,
            "settings": [{"setting": "base", "scores": [0.1, 0.3]}],
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(record))

    for name, fingerprint, grader in (("a", "1", "exact"), ("b", "1", "string"), ("c", "2", "exact")):
        result(make_run(tmp_path, name), fingerprint, domain={"options": {"grader": grader}})
    web = Web(tmp_path)
    told = web.get("/compare?a=a&b=b")[1]
    assert "domain.options.grader" in told and "exact and string" in told
    assert "not tested on the same tasks" in web.get("/compare?a=a&b=c")[1]
