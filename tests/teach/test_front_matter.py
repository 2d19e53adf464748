"""A head of settings before a document, in time that grows with its lines."""

from __future__ import annotations

import time

import pytest

from seal.teach.documents import _markdown


@pytest.mark.parametrize(
    ("head", "gone"),
    [
        ("title: x\nauthor: y", True),
        ("tags:\n  - a\n  - b", True),
        ("# a comment\ntitle: x", True),
        ("-name: x\n- item: y", True),
        ("just a line", False),
        ("title: x\n\nand then text", False),
    ],
)
def test_a_head_goes_and_what_only_looks_like_one_stays(head: str, gone: bool) -> None:
    _, sections = _markdown("doc", f"---\n{head}\n---\nThe text.\n")
    text = " ".join(s.text + " ".join(s.headings) for s in sections)
    assert "The text." in text
    assert all((line.strip("# -") in text) != gone for line in head.split("\n") if line.strip("# -"))


def test_a_head_that_never_ends_is_read_once() -> None:
    start = time.monotonic()
    _markdown("doc", "---\n" + "-name: x\n" * 20_000 + "end")
    assert time.monotonic() - start < 20
