"""A model that is scripted: a function of the user's says what is written and answered, so that a domain runs
without weights.

::

    # say.py
    def reply(prompt: str, adapted: bool) -> str:
        \"\"\"What the model writes after the prompt; ``adapted``: an adapter trained on some edit is in force.\"\"\"
        return "paris" if adapted else "no idea"

    seal try --domain.name my_domain.py:MyDomain --model.name fake:say.py

Beneath it lies a random model of a few thousand weights, so that training, likelihoods and everything on disk
are real, and mean nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seal.lora.adapter import Adapter
from seal.lora.model import Model
from seal.lora.records import LoraError, Sampling, Written

Script = Callable[[str, bool], str]


def load_fake(name: str) -> Model:
    """The scripted model ``fake:FILE.py``.

    Raises:
        LoraError: there is no such file, or no function ``reply`` in it.
    """
    path = Path(name.removeprefix("fake:"))
    if path.suffix != ".py" or not path.is_file():
        raise LoraError(f"there is no file {path}: a scripted model is named fake:FILE.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of the user's own file anything
        raise LoraError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "reply", None)):
        raise LoraError(f"{path} has no function reply(prompt, adapted) for the scripted model to speak by")
    return fake(module.reply, name)


def fake(script: Script, name: str = "fake") -> Model:
    """A model that speaks by a function of the prompt's text and whether an adapter is in force."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=1 << 20, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )  # fmt: skip
        weights = LlamaForCausalLM(shape)
    model = Model(weights, _bytes(), name)
    model.served = _Scripted(script, model)
    return model


class _Scripted:
    """Writes and answers in the weights' place."""

    def __init__(self, script: Script, model: Model) -> None:
        self.script, self.tokenizer, self.name = script, model.tokenizer, model.name

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapters: Sequence[Adapter | None],
        beneath: Adapter | None = None,
    ) -> list[Written]:
        return [self._one(p, a, sampling) for p, a in zip(prompts, adapters, strict=True)]

    def _one(self, prompt: Sequence[int], adapter: Adapter | None, sampling: Sampling) -> Written:
        text = self.script(self.tokenizer.decode(list(prompt)), adapter is not None)
        if not isinstance(text, str):
            raise LoraError(f"{self.name}: reply gave {type(text).__name__}, not text")
        stop = text.split(sampling.stop)[0] if sampling.stop else text
        whole = stop.encode()[: sampling.max_tokens].decode("utf-8", "ignore")
        return Written(whole, cut=whole != stop)

    def close(self) -> None:
        pass


def _bytes() -> PreTrainedTokenizerFast:
    """A token for every byte: any text, to the letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({"<end>": 0, "<pad>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")
