"""Teaching documents, end to end on tiny models and the embedded one; another model behind an endpoint; SEAL's own files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seal.cli import main
from seal.domains.knowledge import Knowledge
from seal.endpoint import Endpoint, EndpointJudge
from seal.judge import Item, judge_prompt, verdict_of
from seal.models.judge import LocalJudge
from seal.models.policy import Policy
from seal.store import claim
from seal.types import SealError
from tests import tiny

EXAMPLES = Path(__file__).parents[1] / "examples/documents"
SHARED = Path(__file__).parents[2] / "shared/data"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taught") / "out"
    main(["learn", str(EXAMPLES), "--out", str(out), "--edits", "2", "--epochs", "4"])
    return out


def test_learning_documents_gives_an_adapter_and_a_card_that_proves_it(taught: Path) -> None:
    card = json.loads((taught / "card.json").read_text())
    assert card["read"] == {"documents": 5, "passages": 5}
    assert card["written"]["edits"] == 10
    assert card["accuracy"]["after"]["mean"] > card["accuracy"]["before"]["mean"]
    assert card["accuracy"]["open book"]["mean"] == 1.0  # only such questions are sound
    text = (taught / "README.md").read_text()
    assert "base_model: atlas" in text
    assert f"{card['accuracy']['after']['mean']:.3f}" in text


def test_no_training_row_holds_a_question_of_the_quiz_and_no_answer_stands_in_both_halves(taught: Path) -> None:
    for chunk in sorted((taught / "chunks").iterdir()):
        for record in json.loads((chunk / "quiz.json").read_text()):
            halves = {h: {q["answer"].lower() for q in record["questions"] if q["half"] == h} for h in ("proof", "practice")}
            assert not halves["proof"] & halves["practice"]


def test_no_edit_row_holds_a_question_of_any_passage_and_the_passage_itself_is_always_taught(tmp_path: Path) -> None:
    from seal.judge import normalize
    from seal.learn import _asks, _rows

    asked = {normalize("When does the journey of Korabi come?")}
    assert _asks("Other\nQuestion: When does the journey of Korabi come? Answer: May.", asked)
    assert not _asks("Korabi travels in May. Does he?", asked)
    passage = {"id": "x", "title": "T", "context": "When does the journey of Korabi come? In May."}
    counts = {"edits": 0, "bad edits": 0, "rows": 0, "rows left out": 0}
    rows = list(
        _rows(Knowledge(), passage, asked, ["Question: When does the journey of Korabi come? Answer: May.\nA fact."], counts)
    )
    assert [r.completion for r in rows] == [f"T\n{passage['context']}", "T\nA fact."]
    assert counts == {"edits": 1, "bad edits": 0, "rows": 2, "rows left out": 1}


def test_an_answer_stands_in_one_half_whatever_the_passage(taught: Path) -> None:
    records = [r for c in (taught / "chunks").iterdir() for r in json.loads((c / "quiz.json").read_text())]
    halves: dict[str, set[str]] = {}
    for question in (q for r in records for q in r["questions"]):
        halves.setdefault(question["answer"].lower(), set()).add(question["half"])
    assert all(len(h) == 1 for h in halves.values())


def test_of_fewer_than_five_passages_nothing_is_concluded() -> None:
    from seal.card import card_of

    quiz = [
        {"id": "p", "drafted": 1, "sound": 1, "questions": [{"question": "q?", "answer": "a", "kind": "new", "half": "proof"}]}
    ]
    answers = [
        {
            "before": ["b"],
            "after": ["a"],
            "open book": ["a"],
            "right": {"before": [False], "after": [True], "open book": [True]},
        }
    ]
    for n, keep in ((1, None), (5, True)):
        passages = [{"source": "s", "title": "T"}] * n
        trained = {"": {"steps": 1, "tokens": 1}}
        assert card_of({}, passages, quiz * n, answers * n, {}, trained)["keep"] is keep


def test_running_it_again_changes_nothing_and_other_settings_are_refused(
    taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {p: p.read_bytes() for p in taught.rglob("*") if p.is_file()}
    main(["learn", str(EXAMPLES), "--out", str(taught), "--edits", "2", "--epochs", "4"])
    assert files == {p: p.read_bytes() for p in taught.rglob("*") if p.is_file()}
    assert main(["learn", str(EXAMPLES), "--out", str(taught), "--edits", "3", "--epochs", "4"]) == 2
    assert "other edits" in capsys.readouterr().err
    assert main(["learn", str(EXAMPLES / "tafobu.md"), "--out", str(taught), "--edits", "2", "--epochs", "4"]) == 2
    assert "other passages" in capsys.readouterr().err
    held = claim(taught)
    assert main(["learn", str(EXAMPLES), "--out", str(taught), "--edits", "2", "--epochs", "4"]) == 2
    assert "in use by another process" in capsys.readouterr().err
    held.close()


def test_asking_with_and_without(taught: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["ask", "Which instrument does one hear in Dezari?", "--adapter", str(taught), "--compare", "--open-book"]) == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["without adapter", "with adapter", "open book (Dezari)"]
    assert (
        main(
            ["ask", "Which instrument does one hear in Dezari?", "--open-book", str(EXAMPLES / "dezari.md"), "--model", "atlas"]
        )
        == 0
    )
    assert capsys.readouterr().out == "trumpet\n"
    monkeypatch.setattr("sys.stdin", iter_input(["Which flower grows all over Tafobu?", ""]))
    assert main(["chat", "--adapter", str(taught / "adapter")]) == 0
    assert capsys.readouterr().out.strip()


def iter_input(lines: list[str]) -> object:
    import io

    return io.StringIO("\n".join(lines) + "\n")


def test_peft_loads_what_was_taught(taught: Path) -> None:
    peft = pytest.importorskip("peft")
    from importlib import resources

    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(resources.files("seal.models") / "atlas"))
    assert peft.PeftModel.from_pretrained(base, str(taught / "adapter")).active_adapter == "default"


def test_merged_weights_answer_as_the_adapter_does(taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(taught), "--out", str(tmp_path / "whole")]) == 0
    assert main(["merge", str(taught), "--out", str(tmp_path / "whole")]) == 2
    capsys.readouterr()
    question = "Which flower grows all over Tafobu?"
    assert main(["ask", question, "--adapter", str(taught)]) == 0
    with_adapter = capsys.readouterr().out
    assert main(["ask", question, "--model", str(tmp_path / "whole"), "--topic", "Tafobu"]) == 0
    assert capsys.readouterr().out == with_adapter


def test_nothing_is_sent_to_the_hub_unless_asked_and_what_fails_is_one_sentence(
    taught: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seal.models import hub

    sent: list[object] = []

    class Api:
        def create_repo(self, repo: str, exist_ok: bool, private: bool) -> None:
            if repo == "not/mine":
                raise OSError("403 Forbidden")
            assert private

        def upload_folder(self, **what: object) -> str:
            sent.append(what["folder_path"])
            return "address"

    monkeypatch.setattr(hub, "HfApi", Api)
    again = ["learn", str(EXAMPLES), "--out", str(taught), "--edits", "2", "--epochs", "4"]
    main(again)
    assert not sent
    main([*again, "--push", "me/taught"])
    assert sent == [taught]
    assert main([*again, "--push", "not/mine"]) == 2
    assert "403 Forbidden" in capsys.readouterr().err


def test_one_adapter_per_document_and_the_best_edits_of_a_tiny_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\nThe {name} is here.\n")
    documents = [str(tmp_path / "one.md"), str(tmp_path / "two.md")]
    flags = ["--model", model, "--edits", "2", "--keep", "1", "--epochs", "1", "--per-document", "--rank", "2"]
    assert main(["learn", *documents, "--out", str(tmp_path / "out"), *flags]) == 0
    assert len(list((tmp_path / "out/adapters").iterdir())) == 2
    assert "no proof" in capsys.readouterr().out  # a random model drafts no sound question


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--learning-rate", "9"], "--learning-rate: Input should be less than or equal to 1"),
        (["--edits", "0"], "--edits"),
        (["--prompt", "no such"], "no prompt variant"),
        (["--writer", "nowhere.json"], "nowhere.json"),
        (["--policy", "nowhere"], "nowhere"),
        (["--writer", "http://localhost:1/v1"], "names no model"),
        (["--keep", "1", "--questions", "0"], "--questions 0 asks for none"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model")
    (tmp_path / "a.md").write_text("# A\n\nText.\n")
    assert main(["learn", str(tmp_path / "a.md"), "--out", str(tmp_path / "out"), "--model", model, *flags]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()  # so that the same command, put right, is not refused


def test_the_recipe_may_be_put_right_until_something_is_trained_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.save(tmp_path / "model")
    (tmp_path / "a.md").write_text("# A\n\nText of it.\n")
    given = [
        "learn",
        str(tmp_path / "a.md"),
        "--out",
        str(tmp_path / "out"),
        "--model",
        model,
        "--edits",
        "1",
        "--rank",
        "2",
        "--epochs",
        "1",
    ]
    monkeypatch.setattr("seal.learn._save", lambda *x: (_ for _ in ()).throw(SealError("training diverged")))
    assert main([*given, "--learning-rate", "1"]) == 2
    monkeypatch.undo()
    assert main([*given, "--learning-rate", "1e-3"]) == 0
    assert main([*given, "--learning-rate", "1e-2"]) == 2


def test_adapters_of_another_model_or_damaged_are_one_sentence(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = tiny.save(tmp_path / "other")
    assert main(["ask", "q", "--adapter", str(taught), "--model", other]) == 2
    assert main(["merge", str(taught), "--out", str(tmp_path / "m"), "--model", other]) == 2
    assert "is not of the model" in capsys.readouterr().err
    for file, text in {"adapter_model.safetensors": "junk", "adapter_config.json": "[]"}.items():
        broken = Path(shutil.copytree(taught / "adapter", tmp_path / file))
        (broken / file).write_text(text)
        assert main(["ask", "q", "--adapter", str(broken), "--model", "atlas"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_quiz_is_a_file_of_passages_that_a_run_takes(tmp_path: Path) -> None:
    assert main(["quiz", str(EXAMPLES), "--out", str(tmp_path / "quiz.json"), "--questions", "3"]) == 0
    domain = Knowledge(str(tmp_path / "quiz.json"), grader="string", sizes={"train": 0, "select": 0, "eval": 4})
    tasks = domain.tasks("eval")
    assert len(tasks) == 4
    assert all(domain.grade(t, [q.gold for q in domain.queries(t)]).score == 1 for t in tasks)


# ------------------------------------------------------------------------------------------------------------ endpoints


class Server:
    """A stand-in for an OpenAI-compatible server: answers by a function, fails when told to, counts requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, object]] = []
        self.failures = 0
        self.status, self.body = 200, ""
        self.fail = lambda body: False
        self.reply = lambda prompt: "yes"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({**body, "key": self.headers.get("Authorization")})
                if server.failures or server.status != 200 or server.fail(body):
                    server.failures = max(0, server.failures - 1)
                    self.send_response(400 if server.fail(body) else 500 if server.status == 200 else server.status)
                    self.end_headers()
                    self.wfile.write(json.dumps({"error": {"message": server.body}}).encode())
                    return
                message = {"role": "assistant", "content": server.reply(body["messages"][0]["content"])}
                text = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]})  # fmt: skip
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
    found = Server()
    yield found
    found.http.shutdown()


def test_answers_come_in_order_are_kept_on_disk_and_failures_are_tried_again(server: Server, tmp_path: Path) -> None:
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
    assert Endpoint(server.name).key == "none"
    assert Endpoint("https://api.openai.com/v1#m").key == "openai-key"


def test_what_an_endpoint_says_is_bounded_and_text_and_what_is_no_verdict_is_asked_again(server: Server) -> None:
    server.reply = lambda prompt: "x" * 1_000_000 + "\ud800"
    assert len(Endpoint(server.name).write(["a"], 5)[0] or "") == 100
    server.reply = lambda prompt: "Maybe."
    assert EndpointJudge(server.name)([Item("q", "x", "y")]) == [None]
    server.reply = lambda prompt: "\ud800 no"
    assert EndpointJudge(server.name)([Item("q", "x", "y")]) == [False]


def test_a_writer_that_fails_in_part_is_owed_not_recorded(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\nThe {name} is here.\n")
    server.reply = lambda prompt: "A line."
    server.fail = lambda body: "The two" in str(body)
    flags = ["--model", model, "--writer", server.name, "--edits", "1", "--questions", "0", "--epochs", "1", "--rank", "2"]
    given = ["learn", str(tmp_path / "one.md"), str(tmp_path / "two.md"), "--out", str(tmp_path / "out"), *flags]
    assert main(given) == 2
    assert "left 1 edits unwritten" in capsys.readouterr().err
    server.fail = lambda body: False
    assert main(given) == 0


def test_an_endpoint_that_is_not_there_is_one_sentence_and_never_wrong(server: Server) -> None:
    with pytest.raises(SealError, match="does not answer"):
        Endpoint("http://127.0.0.1:1/v1#m", retries=0).write(["a"] * 100, 5)
    server.reply = lambda prompt: "hm" if "Question: b" in prompt else "Yes."
    items = [Item("a", "x", "x"), Item("b", "x", "x"), Item("c", "x", " ")]
    assert EndpointJudge(server.name)(items) == [True, None, False]
    assert len(server.requests) == 2  # silence is not sent


def test_a_judge_grades_a_run_and_ungraded_is_not_wrong(server: Server, tmp_path: Path, policy: Policy) -> None:
    from seal.attempts import try_edits
    from seal.config import InnerConfig
    from seal.store import Stage
    from seal.types import Recipe

    domain = Knowledge(grader=server.name, sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("eval")[0]
    inner = InnerConfig(recipe=Recipe(rank=2, steps=1), answer_tokens=4)
    good = try_edits(policy, domain, [task], [["a fact"]], inner, Stage(tmp_path / "good"), 0)[0]
    assert (good.status, good.after) == ("ok", 1.0)
    replies = iter(["yes"] * 5)
    server.reply = lambda prompt: next(replies, "perhaps")
    (tmp_path / "cache/seal/endpoint.sqlite").unlink()
    domain = Knowledge(grader=server.name, sizes={"train": 1, "select": 1, "eval": 1})
    inner = inner.model_copy(update={"recipe": Recipe(rank=2, steps=5, learning_rate=0.1)})
    bad = try_edits(policy, domain, [task], [["another fact"]], inner, Stage(tmp_path / "bad"), 0)[0]
    assert (bad.status, bad.reward) == ("ungraded", None)


def test_seal_judge_takes_a_judge(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": f"q{i}", "gold": "red", "answer": a, "right": r}
        for i, (a, r) in enumerate([("red", True), ("blue", False)])
    ]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    server.reply = lambda prompt: "yes" if "Answer: red" in prompt else "no"
    assert main(["judge", str(tmp_path / "v.jsonl"), "--grader", server.name, "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["graders"][server.name]["all"]["accuracy"] == 1.0


def test_an_endpoint_writes_the_edits(server: Server, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    (tmp_path / "a.md").write_text("# A\n\nText of it.\n")
    server.reply = lambda prompt: "A line from elsewhere."
    out = tmp_path / "out"
    flags = ["--model", model, "--writer", server.name, "--edits", "2", "--questions", "0", "--epochs", "1", "--rank", "2"]
    assert main(["learn", str(tmp_path / "a.md"), "--out", str(out), *flags]) == 0
    assert json.loads((out / "chunks/0000/edits.json").read_text()) == [["A line from elsewhere."] * 2]
    assert "secret-key" not in "".join(p.read_text() for p in out.rglob("*.json"))


def test_an_endpoint_is_one_more_writer_of_the_table(server: Server, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    server.reply = lambda prompt: "A line from elsewhere."
    flags = [
        "--rounds", "0", "--eval.external", server.name, "--eval.edits_per_task", "1", "--eval.saturation_epochs", "[1]", "--write.max_tokens", "8",
        "--inner.recipe.steps", "1", "--inner.recipe.rank", "2", "--inner.answer_tokens", "2", "--model.name", model, "--runs", str(tmp_path),
        "--domain.options", '{"sizes": {"train": 1, "select": 1, "eval": 2}}',
    ]  # fmt: skip
    assert main(["eval", *flags]) == 0
    settings = {s["setting"]: s for s in json.loads((tmp_path / "run/results.json").read_text())["settings"]}
    assert "external writer" in settings
    assert json.loads((tmp_path / "run/eval/external-writer/texts.json").read_text()) == [["A line from elsewhere."]] * 2


def test_a_local_model_is_a_judge_that_always_answers(policy: Policy) -> None:
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


# ------------------------------------------------------------------------------------------------------- SEAL's own files


def result_file(path: Path) -> Path:
    questions = [
        {"rep": rep, "question": f"q{i}", "answer": "a", "baseline_answer": "b", "adapter_answer": "a", "baseline_correct": i == 0, "adapter_correct": (i + rep + e) % 2 == 0}
        for e in range(2)
        for rep in range(2)
        for i in range(3)
    ]  # fmt: skip
    completions = [{"text": f"edit {e}", "questions": questions[6 * e : 6 * e + 6], "stats": {}} for e in range(2)]
    article = {"title": "T", "context": "C.", "completions": completions}
    path.write_text(json.dumps({"overall": {}, "articles": [article, article]}))  # twice the same: each keeps its place
    return path


def test_a_result_file_goes_in_and_comes_out_with_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = result_file(tmp_path / "in.json")
    assert main(["import", str(source), "--out", str(tmp_path / "run")]) == 0
    assert main(["import", str(source), "--out", str(tmp_path / "run")]) == 2
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out.json")]) == 0
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["overall"]["adapter_mean_accuracy"] == 0.5
    assert data["overall"]["baseline_mean_accuracy"] == round(1 / 3, 4)
    assert main(["export", str(tmp_path / "run"), "--kind", "dataset", "--out", str(tmp_path / "set.json")]) == 0
    assert [r["completions"] for r in json.loads((tmp_path / "set.json").read_text())] == [["edit 0", "edit 1"]] * 2
    assert main(["export", str(tmp_path / "run"), "--stage", "none", "--out", str(tmp_path / "x.json")]) == 2
    for number, change in enumerate(({"lora_params": {"rank": 100_000}}, {"articles": [{"title": 1}]}, {"articles": [None]})):
        (tmp_path / "not.json").write_text(json.dumps(json.loads(source.read_text()) | change))
        assert main(["import", str(tmp_path / "not.json"), "--out", str(tmp_path / f"other{number}")]) == 2
        assert not (tmp_path / f"other{number}").exists()
    assert main(["import", str(source), "--out", str(source)]) == 2
    (tmp_path / "not.json").write_text("[]")
    assert main(["import", str(tmp_path / "not.json"), "--out", str(tmp_path / "other")]) == 2
    assert "not one of SEAL's result files" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="the released files are not here")
def test_the_released_result_file_is_reproduced(tmp_path: Path) -> None:
    from seal.released import export_results, import_results

    data = json.loads((SHARED / "result_file.json").read_text())
    run = import_results(SHARED / "result_file.json", tmp_path / "run")
    assert export_results(run, "seal/round-1")["overall"] == data["overall"]
    kept = {k["task"]: k["text"] for k in json.loads((run / "seal/round-1/kept.json").read_text())}
    for task in Knowledge(str(run / "passages.json"), sizes={"train": 0, "select": 0, "eval": 50}).tasks("eval"):
        article = next(a for a in data["articles"] if a["context"] == task.data["context"])
        best = max(article["completions"], key=lambda c: c["stats"]["adapter_mean"])
        assert kept.get(task.id, best["text"]) == best["text"]
        assert task.id in kept or best["stats"]["adapter_mean"] == 0


def test_retrieval_puts_the_right_passage_first() -> None:
    domain = Knowledge(sizes={"train": 1, "select": 1, "eval": 8})
    tasks = domain.tasks("eval")
    for task, queries in zip(tasks, domain.retrieval_queries(tasks, 3), strict=True):
        assert all(q.prompt.text.partition("Passage: ")[2].startswith(task.data["context"]) for q in queries)


def test_splits_may_be_empty_but_not_all() -> None:
    assert Knowledge(sizes={"train": 0, "select": 0, "eval": 2}).tasks("train") == []
    with pytest.raises(SealError, match="not all 0"):
        Knowledge(sizes={"train": 0, "select": 0, "eval": 0})
