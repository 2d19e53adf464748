"""Rows with a teacher, against a plain loop in torch.

- the loss and its gradient are the divergence of top + 1 classes, beside the ordinary loss by its weight;
- the teacher is the untouched model, the model with a text in view, or with another adapter on;
- jobs with and without teachers go side by side, and each learns what it learns alone;
- a job goes through in parts as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from seal.lora.adapter import Adapter, init_adapter, target_modules
from seal.lora.capacity import Room
from seal.lora.chat import conventions_of
from seal.lora.loss import chunked_loss
from seal.lora.model import Model
from seal.lora.packing import SoftTargets
from seal.lora.probe import Nature
from seal.lora.records import Example, LoraError, Recipe
from seal.lora.slots import Slots
from seal.lora.teacher import Teacher, taught_rows
from seal.lora.tokens import encode_example
from seal.lora.train import Job, train_adapters
from tests import tiny

RECIPE = Recipe(rank=4, alpha=8, targets="all-linear", learning_rate=1e-2, steps=3, batch_size=3)
VIEW = "The mat is red."
ROWS = (
    Example("the mat is what the cat sat on", view=""),
    Example("red", prompt="The mat is ", view=VIEW),
    Example("an ordinary row"),
)


def coarse(logs: Tensor, ids: Tensor) -> Tensor:
    """(M, V) log-probabilities as (M, top + 1) probabilities of some tokens, and of all others."""
    top = logs.exp().gather(1, ids)
    return torch.cat([top, (1 - top.sum(1, keepdim=True)).clamp_min(0)], 1)


def said(model: Model, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of the next token, place by place, (T, V)."""
    return model.forward(input_ids=torch.tensor([list(ids)])).logits[0].log_softmax(-1)


def loss_by_hand(learner: Model, speaker: Model, rows: Sequence[Example], teacher: Teacher) -> Tensor:
    total, count = torch.zeros(()), 0
    for example in rows:
        row = encode_example(example, learner.conventions)
        view = learner.tokenizer(f"{example.view}\n\n")["input_ids"] if example.view else []
        for i, on in enumerate(row.loss):
            if not on:
                continue
            count += 1
            mine = said(learner, row.ids)[i - 1]
            ordinary = -mine[row.ids[i]]
            if example.view is None:
                total = total + ordinary
                continue
            with torch.no_grad():
                theirs = said(speaker, (*view, *row.ids))[len(view) + i - 1]
            ids = theirs.topk(teacher.top).indices[None]
            p, q = coarse(theirs[None], ids)[0], coarse(mine[None], ids)[0]
            kl = (torch.xlogy(p, p) - p * q.log()).sum()
            total = total + teacher.ordinary * ordinary + teacher.weight * kl
    return total / count


def adapter_of(model: Model, seed: int) -> Adapter:
    fresh = init_adapter(target_modules(model.bare, "all-linear"), RECIPE, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {n: (a, 0.3 * torch.randn(b.shape, generator=generator)) for n, (a, b) in fresh.weights.items()}
    return Adapter(4, 8.0, weights)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("who", ["itself", "another adapter", "the untouched model"])
def test_loss_and_gradient_are_those_of_a_plain_loop(policy: Model, who: str, plain: bool) -> None:
    learner = policy.plus(adapter_of(policy, 3))
    learner.nature = Nature(plain, plain)
    teacher = Teacher(top=5, weight=0.7, ordinary=0.3)
    speaker = learner
    if who == "another adapter":
        teacher = Teacher(adapter=adapter_of(policy, 1), top=5, weight=0.7, ordinary=0.3)
        assert teacher.adapter is not None
        speaker = learner.plus(teacher.adapter)
    elif who == "the untouched model":
        teacher = Teacher(model=policy, top=5, weight=0.7, ordinary=0.3)
        speaker = policy
    mine = adapter_of(policy, 2)
    room = Slots(target_modules(learner.runner, "all-linear"), 1, 4, "cpu")  # type: ignore[arg-type]
    room.put(0, mine)
    lines = learner.pack([taught_rows(teacher, learner, ROWS)])
    with room.attached(torch.float32, grad=True) as weights:
        with learner.losses(lines) as (total, _):
            found = torch.autograd.grad(total, weights)
        wanted = loss_by_hand(learner, speaker_apart(speaker, learner, teacher), ROWS, teacher)
        expected = torch.autograd.grad(wanted, weights)
    assert float(total) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=2e-6, rtol=1e-3)


def speaker_apart(speaker: Model, learner: Model, teacher: Teacher) -> Model:
    """The teacher on weights of its own: what is attached to the learner is not in force there."""
    return Model(speaker.merged()[0], learner.tokenizer, "teacher")


def test_with_the_whole_vocabulary_it_is_the_divergence_of_the_distributions(policy: Model) -> None:
    """And with less never more than that."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(9, 8, generator=generator), torch.randn(30, 8, generator=generator)
    theirs = torch.randn(9, 30, generator=generator).log_softmax(-1)
    share, targets = torch.full((9,), 1 / 9), torch.zeros(9, dtype=torch.long)
    mine = (hidden @ head.T).log_softmax(-1)
    whole = (theirs.exp() * (theirs - mine)).sum(1).mean()
    values = []
    for top in (1, 4, 12, 30):
        logs, ids = theirs.topk(top)
        soft = SoftTargets(ids, logs, torch.zeros(9), torch.ones(9))
        values.append(float(chunked_loss(hidden, head, None, targets, share, 4, soft)[0]))
    assert values == sorted(values) and values[0] < values[-1]
    assert values[-1] == pytest.approx(float(whole), rel=1e-5)


def test_a_job_with_a_teacher_learns_beside_others_what_it_learns_alone(policy: Model) -> None:
    plain = tuple(Example(e.completion, prompt=e.prompt) for e in ROWS)
    jobs = [
        Job(ROWS, RECIPE, 0, teacher=Teacher(adapter=adapter_of(policy, 1), top=4)),
        Job(plain, RECIPE, 1),
        Job(ROWS, RECIPE, 2, teacher=Teacher(top=9, ordinary=0.0)),
    ]
    together = train_adapters(policy, jobs, Room(3, 1000))
    for job, mine in zip(jobs, together, strict=True):
        for room in (Room(1, 1000), Room(1, 30)):  # whole, and in parts
            (alone,) = train_adapters(policy, [job], room)
            assert alone.loss == pytest.approx(mine.loss, rel=1e-4) and alone.adapter and mine.adapter
            for name, (a, b) in alone.adapter.weights.items():
                assert torch.allclose(a, mine.adapter.weights[name][0], atol=1e-4)
                assert torch.allclose(b, mine.adapter.weights[name][1], atol=1e-4)
    without = train_adapters(policy, [Job(plain, RECIPE, 0)], Room(1, 1000))[0]
    assert without.loss[1] != pytest.approx(together[0].loss[1], rel=1e-3), "a teacher makes a difference"


def test_what_a_model_says_with_a_text_in_view_goes_into_an_adapter(policy: Model) -> None:
    """The use of it: afterwards the adapter says without the text what the model says with it."""
    rows = (Example("red and blue and green", prompt="The mat is ", view=VIEW),)
    recipe = RECIPE.model_copy(update={"steps": 40, "batch_size": 1})
    trained = train_adapters(policy, [Job(rows, recipe, 0, teacher=Teacher(ordinary=0.0, top=60))])[0]
    assert trained.adapter is not None and trained.loss[1] < 0.1 * trained.loss[0]


def test_a_teacher_that_agrees_has_nothing_to_teach(policy: Model) -> None:
    row = (Example("the mat", view=""),)
    trained = train_adapters(policy, [Job(row, RECIPE, 0, teacher=Teacher(ordinary=0.0))])[0]
    assert trained.loss[0] == pytest.approx(0, abs=1e-5)


def test_what_cannot_be_taught_is_one_sentence(policy: Model) -> None:
    with pytest.raises(LoraError, match="its job has no teacher"):
        train_adapters(policy, [Job(ROWS, RECIPE, 0)])
    long = (Example("a", view="x" * policy.context),)
    with pytest.raises(LoraError, match=r"a view and its row are \d+ tokens"):
        train_adapters(policy, [Job(long, RECIPE, 0, teacher=Teacher())])


def test_a_view_goes_into_the_turn_of_a_chat(policy: Model) -> None:
    """The loss tokens are the very same ones, whatever stands before them."""
    policy.tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    policy.conventions = conventions_of(policy.tokenizer, chat="on")
    row = Example("red", prompt="colour?", chat=True, view=VIEW)
    (found,) = taught_rows(Teacher(top=3), policy, [row])
    assert found.soft is not None and found.soft.ids.shape == (len("red") + 1, 3)
    text = policy.tokenizer.decode([*found.ids])
    assert VIEW not in text and "[colour?]" in text
    assert tiny.tokenizer().chat_template is None
