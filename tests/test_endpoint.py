"""Another model behind an endpoint, as writer and as judge: bounded, retried, and never wrong because it is
silent."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seal import endpoint
from seal.cli.main import main
from seal.domains.judges import EndpointJudge, Item, judge_prompt, verdict_of
from seal.domains.knowledge import Knowledge
from seal.endpoint import Endpoint
from seal.loop.judge import LocalJudge
from seal.lora.model import Model
from seal.records import SealError
from tests import tiny
from tests.runs import command, content

EXAMPLES = Path(__file__).parents[1] / "examples/documents"


class Server:
    """A stand-in for an OpenAI-compatible server: answers by a function, fails when told to, counts
    requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, object]] = []
        self.failures = 0
        self.status, self.body = 200, ""
        self.fail = lambda body: False
        self.reply = lambda prompt: "yes"
        self.raw: Callable[[dict[str, object]], tuple[int, str, str] | None] = lambda body: None
        """Status, content type and body to answer with instead."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({**body, "key": self.headers.get("Authorization")})
                if (raw := server.raw(body)) is not None:
                    self.send_response(raw[0])
                    self.send_header("Content-Type", raw[1])
                    self.end_headers()
                    self.wfile.write(raw[2].encode())
                    return
                if server.failures or server.status != 200 or server.fail(body):
                    server.failures = max(0, server.failures - 1)
                    self.send_response(
                        400 if server.fail(body) else 500 if server.status == 200 else server.status
                    )
                    self.end_headers()
                    self.wfile.write(json.dumps({"error": {"message": server.body}}).encode())
                    return
                message = {"role": "assistant", "content": server.reply(body["messages"][0]["content"])}
                text = json.dumps(
                    {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": "m",
                        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    }
                )
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.name = f"http://127.0.0.1:{self.http.server_port}/v1#m"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("openai")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SEAL_API_KEY", "secret-key")
    monkeypatch.setattr(endpoint, "GIVEN", {})
    found = Server()
    yield found
    found.http.shutdown()


def test_answers_come_in_order_are_kept_on_disk_and_failures_are_tried_again(
    server: Server, tmp_path: Path
) -> None:
    server.reply = str.upper
    server.failures = 1
    prompts = [f"prompt {i}" for i in range(20)]
    assert Endpoint(server.name).write(prompts, 10) == [p.upper() for p in prompts]
    asked = len(server.requests)
    assert asked == 21
    assert Endpoint(server.name).write(prompts, 10) == [p.upper() for p in prompts]
    assert len(server.requests) == asked
    assert server.requests[0]["key"] == "Bearer secret-key"
    assert b"secret-key" not in (tmp_path / "cache/seal/endpoint.sqlite").read_bytes()


def test_keys_stay_out_of_addresses_messages_and_hosts_that_are_not_theirs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("http://user:word@host/v1#m", "http://host/v1?api_key=x#m"):
        with pytest.raises(SealError, match="SEAL_API_KEY") as error:
            Endpoint(address)
        assert "word" not in str(error.value) and "=x" not in str(error.value)
    with pytest.raises(SealError, match="not an address"):
        Endpoint("http://[::1#m")
    server.status, server.body = 401, "bad key secret-key"
    with pytest.raises(SealError) as error:
        Endpoint(server.name, retries=0).write(["a"], 5)
    assert "secret-key" not in str(error.value)
    monkeypatch.delenv("SEAL_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "openai-key")
    assert Endpoint(server.name).key == ""
    assert Endpoint("https://api.openai.com/v1#m").key == "openai-key"


def test_what_an_endpoint_says_is_bounded_and_text_and_what_is_no_verdict_is_asked_again(
    server: Server,
) -> None:
    server.reply = lambda prompt: "x" * 1_000_000 + "\ud800"
    assert len(Endpoint(server.name).write(["a"], 5)[0] or "") == 100
    server.reply = lambda prompt: "Maybe."
    assert EndpointJudge(server.name)([Item("q", "x", "y")]) == [None]
    server.reply = lambda prompt: "\ud800 no"
    assert EndpointJudge(server.name)([Item("q", "x", "y")]) == [False]


def test_what_is_refused_of_one_prompt_is_final_for_that_prompt(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\nThe {name} is here.\n")
    server.reply = lambda prompt: "A line."
    server.fail = lambda body: "The two" in str(body)
    flags = [
        "--model",
        model,
        "--writer",
        server.name,
        "--edits",
        "1",
        "--questions",
        "0",
        "--epochs",
        "1",
        "--rank",
        "2",
    ]
    given = [
        "learn",
        str(tmp_path / "one.md"),
        str(tmp_path / "two.md"),
        "--out",
        str(tmp_path / "out"),
        *flags,
    ]
    server.body = "too long for me"
    assert main(given) == 0
    told = capsys.readouterr().err
    assert "refused 1 of 2 edits" in told and "HTTP 400: too long for me" in told and "'two'" in told
    assert "again" not in told.split("refused 1", 1)[1].split("\n")[0]


def test_an_endpoint_that_is_not_there_is_one_sentence_and_never_wrong(server: Server) -> None:
    with pytest.raises(SealError, match="does not answer"):
        Endpoint("http://127.0.0.1:1/v1#m", retries=0).write(["a"] * 100, 5)
    server.reply = lambda prompt: "hm" if "Question: b" in prompt else "Yes."
    items = [Item("a", "x", "x"), Item("b", "x", "x"), Item("c", "x", " ")]
    assert EndpointJudge(server.name)(items) == [True, None, False]
    assert len(server.requests) == 2  # silence is not sent


def test_a_judge_grades_a_run_and_ungraded_is_not_wrong(
    server: Server, tmp_path: Path, policy: Model
) -> None:
    from seal.config import InnerConfig
    from seal.loop.inner import InnerLoop
    from seal.records import Recipe
    from seal.store import Stage

    domain = Knowledge(grader=server.name, sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("eval")[0]
    inner = InnerConfig(recipe=Recipe(rank=2, steps=1), answer_tokens=4)
    good = InnerLoop(domain, inner).try_edits(policy, [task], [["a fact"]], Stage(tmp_path / "good"), 0)[0]
    assert (good.status, good.after) == ("ok", 1.0)
    replies = iter(["yes"] * 5)
    server.reply = lambda prompt: next(replies, "perhaps")
    (tmp_path / "cache/seal/endpoint.sqlite").unlink()
    domain = Knowledge(grader=server.name, sizes={"train": 1, "select": 1, "eval": 1})
    inner = inner.model_copy(update={"recipe": Recipe(rank=2, steps=5, learning_rate=0.1)})
    bad = InnerLoop(domain, inner).try_edits(policy, [task], [["another fact"]], Stage(tmp_path / "bad"), 0)[
        0
    ]
    assert (bad.status, bad.reward) == ("ungraded", None)


def test_what_is_about_one_prompt_ends_nothing_and_what_is_about_the_endpoint_does(server: Server) -> None:
    one = Endpoint(server.name, retries=0)
    server.fail = lambda body: "bad" in str(body)  # answered by 400
    with pytest.raises(SealError, match="does not answer"):
        one.write(["bad"], 5)
    assert Endpoint(server.name, retries=0).write(["bad", "z"], 5) == [None, "yes"], (
        "nor before anything was answered"
    )
    assert one.write(["a", "bad 1"], 5) == ["yes", None]
    assert one.write(["bad 2", "b"], 5) == [None, "yes"], "nor where it stands first"
    server.fail = lambda body: False
    for status in (402, 409, 501, 529):
        server.status = status
        with pytest.raises(SealError, match="answer"):
            Endpoint(server.name, retries=0).write([f"c{status}", f"d{status}"], 5)
    server.status = 200


def test_a_key_that_no_header_takes_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAL_API_KEY", "k\nx")
    with pytest.raises(SealError, match="SEAL_API_KEY"):
        Endpoint(server.name)


@pytest.mark.slow
def test_a_judge_that_drops_out_in_the_middle_costs_nothing(
    server: Server,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.reply = lambda prompt: "yes" if len(prompt) % 3 else "no"

    def run(name: str) -> int:
        options = {"grader": server.name, "sizes": {"train": 4, "select": 1, "eval": 3}}
        words = [w for w in command(model, tmp_path, name)[3:] if "domain.options" not in w]
        return main([*words, f"--domain.options={json.dumps(options)}"])

    assert run("whole") == 0
    asked = len(server.requests)
    monkeypatch.setattr(endpoint, "PATIENCE", 1)
    for name, failures in (("moment", 1), ("longer", 10**9)):
        (tmp_path / "cache/seal/endpoint.sqlite").unlink()
        before = len(server.requests)

        def drop(body: dict[str, object], before: int = before, failures: int = failures) -> bool:
            if len(server.requests) == before + asked // 2:
                server.failures = failures
            return False

        server.fail = drop
        code = run(name)
        server.failures = 0
        assert code == (2 if failures > 1 else 0)
        if code:
            # which of the two depends on whose request it was: the run opens an endpoint for every branch
            assert re.search("no longer answers|does not answer", capsys.readouterr().err)
            server.fail = lambda body: False
            assert run(name) == 0
        assert content(tmp_path / name) == content(tmp_path / "whole")


def test_seal_judge_takes_a_judge(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": f"q{i}", "gold": "red", "answer": a, "right": r}
        for i, (a, r) in enumerate([("red", True), ("blue", False)])
    ]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    server.reply = lambda prompt: "yes" if "Answer: red" in prompt else "no"
    assert (
        main(
            [
                "check",
                "graders",
                str(tmp_path / "v.jsonl"),
                "--grader",
                server.name,
                "--json",
                str(tmp_path / "out.json"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "out.json").read_text())["graders"][server.name]["all"]["accuracy"] == 1.0


def test_an_endpoint_writes_the_edits(server: Server, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    (tmp_path / "a.md").write_text("# A\n\nText of it.\n")
    server.reply = lambda prompt: "A line from elsewhere."
    out = tmp_path / "out"
    flags = [
        "--model",
        model,
        "--writer",
        server.name,
        "--edits",
        "2",
        "--questions",
        "0",
        "--epochs",
        "1",
        "--rank",
        "2",
    ]
    assert main(["learn", str(tmp_path / "a.md"), "--out", str(out), *flags]) == 0
    assert json.loads((out / "chunks/0000/edits.json").read_text()) == [["A line from elsewhere."] * 2]
    assert "secret-key" not in "".join(p.read_text() for p in out.rglob("*.json"))


def test_an_endpoint_is_one_more_writer_of_the_table(server: Server, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    server.reply = lambda prompt: "A line from elsewhere."
    flags = [
        "--rounds",
        "0",
        "--eval.external",
        server.name,
        "--eval.edits_per_task",
        "1",
        "--eval.saturation_epochs",
        "[1]",
        "--write.max_tokens",
        "8",
        "--inner.recipe.steps",
        "1",
        "--inner.recipe.rank",
        "2",
        "--inner.answer_tokens",
        "2",
        "--model.name",
        model,
        "--runs",
        str(tmp_path),
        "--domain.options",
        '{"sizes": {"train": 1, "select": 1, "eval": 2}}',
    ]
    assert main(["eval", *flags]) == 0
    settings = {s["setting"]: s for s in json.loads((tmp_path / "run/results.json").read_text())["settings"]}
    assert "external writer" in settings
    assert (
        json.loads((tmp_path / "run/eval/external-writer/texts.json").read_text())
        == [["A line from elsewhere."]] * 2
    )


def test_a_local_model_is_a_judge_that_always_answers(policy: Model) -> None:
    verdicts = LocalJudge(policy)([Item("q", "x", "y"), Item("q", "x", "")])
    assert verdicts[0] in (True, False)
    assert verdicts[1] is False


def test_verdicts_are_yes_or_no_or_none() -> None:
    assert [verdict_of(t) for t in ("Yes", " no.", "**Yes**, it is", "maybe", "", "yesterday")] == [
        True,
        False,
        True,
        None,
        None,
        None,
    ]
    assert "\nAnswer: two lines\n" in judge_prompt(Item("q", "g", "two\nlines"))


@pytest.mark.parametrize(
    ("status", "kind", "body", "told"),
    [
        (200, "text/html", "<html><body>Welcome to nginx</body></html>", "web page: is /v1 missing"),
        (200, "text/event-stream", 'data: {"choices": []}\n\n', "stream"),
        (
            200,
            "application/json",
            '{"choices": null, "error": {"message": "insufficient credits"}}',
            "credits",
        ),
        (200, "application/json", '{"choices": [], "error": "no such deployment"}', "no such deployment"),
        (200, "application/json", "not json at all", "cannot be read"),
        (200, "text/plain", "OK", "no completion: 'OK'"),
        (403, "text/html", "<h1>Forbidden by the gateway</h1>", "HTTP 403: <h1>Forbidden by the gateway"),
        (401, "application/json", '{"error": {"message": "bad key secret-key"}}', "bad key \\(key\\)"),
        (500, "text/plain", "", "HTTP 500: nothing more is said"),
    ],
)
def test_what_is_no_completion_is_told_in_the_servers_words(
    server: Server, status: int, kind: str, body: str, told: str
) -> None:
    server.raw = lambda _: (status, kind, body)
    with pytest.raises(SealError, match=told) as error:
        Endpoint(server.name, retries=0).write(["a", "b"], 5)
    assert "attribute" not in str(error.value) and "secret-key" not in str(error.value)


def test_an_answer_without_choices_is_of_that_prompt_and_parts_of_a_message_are_joined(
    server: Server,
) -> None:
    parts = [{"type": "text", "text": "half "}, {"type": "text", "text": "whole"}]
    server.raw = lambda body: (
        (200, "application/json", '{"choices": []}')
        if "odd" in str(body)
        else (200, "application/json", json.dumps({"choices": [{"message": {"content": parts}}]}))
    )
    one = Endpoint(server.name, retries=0)
    assert one.write(["odd", "b"], 5) == [None, "half whole"]
    assert one.refused == ["its answer holds no choices"]


def test_the_cause_of_no_connection_is_told(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    port = server.http.server_port
    for name, told in (
        ("http://127.0.0.1:1/v1#m", "no connection to 127.0.0.1: .*refused"),
        ("http://no.such.host.invalid/v1#m", "name is not known"),
        (f"https://127.0.0.1:{port}/v1#m", "SSL"),
    ):
        monkeypatch.setenv("SEAL_API_KEY", "")
        with pytest.raises(SealError, match=told) as error:
            Endpoint(name, retries=0).write(["a"], 5)
        assert "Connection error" not in str(error.value)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(SealError, match=r"through the proxy http://127.0.0.1:1"):
        Endpoint("http://some.host/v1#m", retries=0).write(["a"], 5)


def test_a_client_that_cannot_be_made_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/none/at/all.pem")
    with pytest.raises(SealError, match=r"SSL_CERT_FILE=/none/at/all.pem"):
        Endpoint("https://some.host/v1#m")
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("SEAL_API_KEY", "")
    with pytest.raises(SealError, match=r"socks|SOCKS|does not answer"):
        Endpoint("http://some.host/v1#m", retries=0).write(["a"], 5)


def test_models_that_want_other_settings_get_them(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    def raw(body: dict[str, object]) -> tuple[int, str, str] | None:
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        elif body.get("temperature", 1) != 1:
            message = "Unsupported value: 'temperature' does not support 0.5 with this model."
        else:
            return None
        return 400, "application/json", json.dumps({"error": {"message": message}})

    server.raw = raw
    one = Endpoint(server.name, retries=0)
    assert one.write(["a", "b"], 7, 0.5) == ["yes", "yes"]
    assert server.requests[-1]["max_completion_tokens"] == 7
    assert len(server.requests) == 4, "what was learnt of the model holds for the next prompt"
    assert "no temperature but its own" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_done_without(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Endpoint(server.name).write(["a"], 5) == ["yes"]
    assert capsys.readouterr().err.count("are not kept") == 1
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert Endpoint(server.name).write(["a"], 5) == ["yes"]
    assert "home directory" in capsys.readouterr().err
    one = Endpoint(server.name, tmp_path / "there.sqlite")
    assert one.cache.db is not None
    one.cache.db.close()
    assert one.write(["a"], 5) == ["yes"], "nor when it fails later"


def test_a_key_goes_to_the_host_that_it_was_given_for_and_not_in_plain_text(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Server()
    Endpoint(server.name).write(["a"], 5)
    Endpoint(other.name).write(["a"], 5)
    assert server.requests[-1]["key"] == "Bearer secret-key"
    assert other.requests[-1]["key"] == "Bearer none"
    assert "SEAL_API_KEY was given for 127.0.0.1" in capsys.readouterr().err
    monkeypatch.setenv("SEAL_API_KEY_MY_JUDGE_ORG", "its-own")
    assert Endpoint("https://my.judge.org/v1#m").key == "its-own"
    with pytest.raises(SealError, match="plain text") as error:
        Endpoint("http://my.judge.org/v1#m")
    assert "its-own" not in str(error.value)
    monkeypatch.setenv("SEAL_API_KEY_MY_JUDGE_ORG", "")
    assert Endpoint("http://my.judge.org/v1#m").key == ""
    other.http.shutdown()


def test_other_seeds_of_the_loop_are_other_draws(server: Server) -> None:
    from seal.loop.write import from_another
    from seal.records import Prompt, Task

    def ask(seed: int) -> list[object]:
        from_another(server.name, [Task("t", {})], [Prompt("p")], 2, seed)
        return [r["seed"] for r in server.requests]

    assert ask(0) == [0, 1]
    assert ask(0) == [0, 1], "kept"
    assert ask(1) == [0, 1, 2, 3]
