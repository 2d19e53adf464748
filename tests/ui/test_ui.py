"""The dashboard in a real browser: every page in both themes, runs of every state, a hundred thousand
attempts, an edit that is an attack."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seal.config import RunConfig
from seal.records import SealError

pytest.importorskip("starlette", reason="the extra `ui` is not installed")
pytest.importorskip("jinja2")
uvicorn = pytest.importorskip("uvicorn")

from seal.store import claim  # noqa: E402
from seal.ui.app import make_app  # noqa: E402
from seal.ui.data import AttemptsFile, Folder  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ATTACK = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'><svg onload=window.hacked=1>"
)
MANY = 100_000


def attempt(task: str, edit: int, reward: float | None, text: str = "A line.", **more: Any) -> str:
    row: dict[str, Any] = {
        "task": task,
        "edit": edit,
        "seed": 1,
        "text": text,
        "status": "ok",
        "reason": "",
        "reward": reward,
        "before": 0.1,
        "after": reward or 0.0,
        "answers": ["yes"],
        "scores": [reward or 0.0],
        "kinds": ["all"],
        "silent": 0.0,
        "log_likelihood": -1.0,
        "rows": 1,
        "steps": 2,
        "tokens": 9,
        "seconds": 0.5,
        "loss": [1.0, 0.5],
    }
    return json.dumps(row | more) + "\n"


def make_run(root: Path, name: str, lines: str = "", stage: str = "seal/round-1") -> Path:
    folder = root / name
    (folder / stage).mkdir(parents=True)
    (folder / "config.json").write_text(RunConfig(name=name).model_dump_json())
    if lines:
        (folder / stage / "attempts.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def root(unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("root")
    (root / "whole").symlink_to(unbroken)
    make_run(root, "empty")
    (root / "empty/seal/round-1").rmdir()
    (root / "empty/seal").rmdir()
    broken = make_run(root, "broken")
    (broken / "config.json").write_text("{")
    attack = make_run(
        root, "attack", attempt(ATTACK, 0, 0.5, ATTACK, reason=ATTACK, answers=[ATTACK]) + '{"torn'
    )
    (attack / "seal/round-1/before.json").write_text(json.dumps([[ATTACK]]))
    make_run(root, "many", "".join(attempt(f"task-{i // 5}", i % 5, (i % 7) / 7) for i in range(MANY)))
    running = make_run(root, "running", attempt("a", 0, 0.5))
    lock = claim(running)
    continual = make_run(root, "continual")
    (continual / "continual").mkdir()
    steps = [
        {
            "scores": [[0.5] * (i + 1)] * 2,
            "first": 0,
            "known": [1.0, 1.0],
            "silent": 0.0,
            "edits": [-1.0],
            "kl": 1.0,
            "dropped": 0,
            "tokens": 5,
            "seconds": 1.0,
        }
        for i in range(3)
    ]
    record = {
        "seed": 0,
        "date": "2026-01-01",
        "machine": "m",
        "untouched": [[0.1] * 3] * 2,
        "baseline": {"known": 1.0, "edits": -1.0},
        "results": [{"strategy": ATTACK, "steps": steps}],
    }
    (continual / "continual.json").write_text(json.dumps(record))
    yield root
    lock.lock.release()


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(root), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def task_of(root: Path, run: str, stage: str = "seal/round-1") -> str:
    return next(iter(Folder(root).run(run).attempts(stage).by_task))


def pages(root: Path) -> list[str]:
    whole = task_of(root, "whole")
    return [
        "/",
        "/?q=man",
        "/run?name=whole",
        "/run?name=empty",
        "/run?name=broken",
        "/run?name=attack",
        "/run?name=many",
        "/run?name=running",
        "/run?name=continual",
        "/stage?name=whole&stage=seal/round-1&sort=best",
        f"/task?name=whole&stage=seal/round-1&task={whole}",
        "/words?name=whole",
        "/stage?name=attack&stage=seal/round-1",
        "/task?name=attack&stage=seal/round-1&task="
        + ATTACK.replace(" ", "%20").replace("&", "%26").replace("#", "%23"),
        "/stage?name=many&stage=seal/round-1&page=7",
        "/compare?a=whole&b=whole",
        "/teach",
        "/run?name=nothing",
    ]


@pytest.mark.parametrize(("theme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_every_page_in_both_themes_and_on_a_phone(
    browser: Any, address: str, root: Path, theme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    for path in pages(root):
        page.goto(address + path)
        assert page.locator("h1").count() == 1, path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"{path} is wider than the screen"
        )
        assert page.evaluate("window.hacked") is None, path
    assert not errors
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(20, 23, 27)") == (theme == "dark")
    context.close()


def test_the_edit_browser_marks_right_and_wrong_and_ranks(browser: Any, address: str, root: Path) -> None:
    page = browser.new_page()
    page.goto(f"{address}/task?name=whole&stage=seal/round-1&task={task_of(root, 'whole')}")
    rewards = [float(x) for x in page.locator(".reward").all_inner_texts()]
    assert len(rewards) == 3 and rewards == sorted(rewards, reverse=True)
    assert page.locator(".passage").count() == 1 and page.locator(".answers tbody tr").count() == 15
    page.close()


def get(
    address: str,
    path: str,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    post: str | None = None,
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of a page, asked for as nobody's browser would."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request(
        "GET" if post is None else "POST",
        path + ("?" + urllib.parse.urlencode(query) if query else ""),
        post,
        (headers or {}) | ({} if post is None else {"Content-Type": "application/x-www-form-urlencoded"}),
    )
    reply = connection.getresponse()
    found = reply.status, reply.read().decode(), {k.lower(): v for k, v in reply.getheaders()}
    connection.close()
    return found


def test_keys_alone_will_do(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("many")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=many**")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/run?name=many")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.close()


def test_a_hundred_thousand_attempts_come_by_the_page(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/stage?name=many&stage=seal/round-1")
    assert page.locator("tbody tr").count() == 50 and "page 1 of 400" in page.inner_text("main")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**page=2**")
    page.close()


def test_a_live_run_is_followed(browser: Any, address: str, root: Path) -> None:
    page = browser.new_page()
    page.goto(f"{address}/run?name=running")
    assert "running" in page.inner_text("h1") and page.locator(".live").count() == 1
    with (root / "running/seal/round-1/attempts.jsonl").open("a") as file:
        file.write(attempt("b", 0, 0.7))
    page.get_by_text("2 of 240").wait_for(timeout=20_000)
    page.close()


def test_the_slider_shows_the_matrix_step_by_step(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/run?name=continual")
    page.locator("#step").evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input')) }")
    assert page.locator("#heat tr.later").count() == 2 and page.inner_text("#step-out") == "1"
    page.close()


def test_a_text_is_taught_and_asked_in_the_browser(browser: Any, address: str, root: Path) -> None:
    page = browser.new_page()
    page.goto(f"{address}/teach")
    page.fill("#title", "Dorapo")
    page.fill(
        "#text",
        "The bridge Dorapo was finished in June. It is built of slate. Dorapo has nine arches. The bridge is "
        "in Tesk.",
    )
    page.click("text=Teach it")
    page.wait_for_url("**/taught**", timeout=120_000)
    page.wait_for_selector("#question", timeout=240_000)
    page.fill("#question", "Of what is Dorapo built?")
    page.click("text=Ask >> nth=-1")
    page.wait_for_selector("dl.answers dt", timeout=120_000)
    assert page.locator("dl.answers dt").all_inner_texts()[:2] == ["without adapter", "with adapter"]
    page.close()
    folder = next(root.glob("taught-dorapo-*"))
    assert (folder / "adapter/adapter_model.safetensors").exists() and (folder / "card.json").exists()


def test_other_hosts_other_pages_and_paths_outside_are_refused(address: str, root: Path) -> None:
    assert get(address, "/", headers={"Host": "evil.example"})[0] == 400
    for origin in ("http://evil.example", "null", address.replace("http", "https")):
        status, text, _ = get(address, "/teach", headers={"Origin": origin}, post="text=x")
        assert status == 403 and "another page" in text
    (root.parent / "secret").mkdir(exist_ok=True)
    (root.parent / "secret/config.json").write_text("{}")
    for name in ("../secret", str(root.parent / "secret"), "whole/../../secret", "\0", ""):
        assert get(address, "/run", {"name": name})[0] == 404
    assert get(address, "/run", {"name": "whole"})[0] == 200
    assert get(address, "/stage", {"name": "whole", "stage": "../../secret"})[0] == 404
    assert "default-src 'none'" in get(address, "/")[2]["content-security-policy"]


def test_attempts_are_read_once_and_a_torn_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    path.write_text(attempt("a", 0, 0.5) + attempt("a", 1, 0.25)[:-9])
    file = AttemptsFile(path).refresh()
    assert [b.edit for b in file.briefs] == [0] and file.end == len(attempt("a", 0, 0.5))
    path.write_text(attempt("a", 0, 0.5) + attempt("a", 1, None) + attempt("b", 0, 1.0))
    assert [(b.task, b.reward) for b in file.refresh().briefs] == [("a", 0.5), ("a", None), ("b", 1.0)]
    assert [r["text"] for r in file.rows([2, 0])] == ["A line.", "A line."] and file.by_task == {
        "a": [0, 1],
        "b": [2],
    }
    path.write_text(attempt("c", 0, 0.5))
    assert list(file.refresh().by_task) == ["c"]


def test_a_domain_of_somebody_elses_is_not_executed(tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'was here')!r}, 'w')\n")
    folder = make_run(tmp_path / "runs", "x", attempt("a", 0, 0.5))
    config = json.loads((folder / "config.json").read_text())
    config["domain"] = {"name": f"{evil}:Evil", "options": {}}
    (folder / "config.json").write_text(json.dumps(config))
    run = Folder(tmp_path / "runs").run("x")
    assert run.tasks() == {} and run.domain is None and not (tmp_path / "was here").exists()
    with pytest.raises(SealError, match="no run"):
        Folder(tmp_path / "runs").run("y")
