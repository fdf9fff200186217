"""Rows of several adapters in one batch say what each would say alone."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from tests.app.conftest import make_run, runs, tiny_base  # noqa: F401  (fixtures)
from toolkit.app.workbench import Workbench
from toolkit.kernels.fused_lora import FusedLoraLinear
from toolkit.sampling.choosing import choose
from toolkit.sampling.row_batch import Row, RowBatch
from toolkit.sampling.settings import Drawing

PROMPTS = [[5, 9, 30], [7] * 9, [40, 41, 42, 43, 44], [11]]


@pytest.fixture
def roles(tiny_base: str, runs: Path) -> Any:  # noqa: F811
    """Three LoRAs of two ranks, and one with DoRA, on the tiny base in float32."""
    roles = Workbench.open(tiny_base, runs).roles
    for name in ("sft", "dpo"):
        roles.attach(name, runs / name)
    for name, rank, dora in (("wide", 8, False), ("dora", 4, True)):
        config = LoraConfig(
            r=rank, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", use_dora=dora
        )
        roles.create(name, config)
        for parameter in roles._parameters(name):
            torch.nn.init.normal_(parameter, std=0.3)
    return roles


def batch(roles: Any) -> RowBatch:
    return RowBatch(roles, stop=[2], pad_id=0)


def row(i: int, adapter: str | None, **drawing: Any) -> Row:
    return Row(
        list(PROMPTS[i]), adapter, Drawing(**{"max_new_tokens": 12, "temperature": 0} | drawing)
    )


def alone(roles: Any, asked: Row) -> list[int]:
    """Greedy, one full pass for each token, under that role alone."""
    ids = list(asked.prompt)
    with torch.no_grad(), roles.using(asked.adapter) as model:
        for _ in range(asked.drawing.max_new_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
    return ids[len(asked.prompt) :]


def finish(decoding: RowBatch) -> None:
    while decoding.rows:
        decoding.step()
    decoding.pause()


def test_greedy_rows_say_what_they_would_say_alone(roles: Any) -> None:
    rows = [row(i, name) for i, name in enumerate(["sft", None, "dpo", "wide"])]
    decoding = batch(roles)
    decoding.join(rows)
    finish(decoding)
    assert [r.ids for r in rows] == [alone(roles, r) for r in rows]
    assert len({tuple(alone(roles, row(0, n))) for n in ("sft", None, "dpo", "wide")}) == 4


def test_rows_may_join_and_leave_between_tokens(roles: Any) -> None:
    chance, decoding = random.Random(0), batch(roles)
    rows = [
        row(chance.randrange(4), chance.choice(["sft", None, "dpo", "wide"]), max_new_tokens=n)
        for n in (9, 2, 12, 5, 1, 7)
    ]
    waiting, gone = list(rows), []
    while waiting or decoding.rows:
        if waiting:
            decoding.join([waiting.pop(0)])
        decoding.step()
        if len(decoding.rows) > 1 and not gone:  # a visitor who closes the page
            gone.append(decoding.rows[0])
            decoding.leave(gone)
    decoding.pause()
    for asked in rows:
        expected = alone(roles, asked)
        assert asked.ids == (expected[: len(asked.ids)] if asked in gone else expected)


def test_a_seed_gives_the_same_in_any_company(roles: Any) -> None:
    lone, decoding = row(0, "sft", temperature=1.0, seed=4), batch(roles)
    decoding.join([lone])
    finish(decoding)
    company = [row(i % 4, n, temperature=1.0, seed=i) for i, n in enumerate(["dpo", None, "wide"])]
    again = row(0, "sft", temperature=1.0, seed=4)
    decoding.join(company)
    decoding.step()
    decoding.join([again])
    finish(decoding)
    assert again.ids == lone.ids


def test_the_base_is_given_back_as_it_was(roles: Any) -> None:
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        before = [roles.model(ids).logits, roles.trainable_names()]
        decoding = batch(roles)
        decoding.join([row(0, "sft"), row(1, "dpo")])
        decoding.step()
        decoding.pause()
        assert torch.equal(roles.model(ids).logits, before[0])
    assert roles.trainable_names() == before[1]


def test_what_cannot_be_mixed_is_named(roles: Any) -> None:
    assert [roles.mixes(n) for n in (None, "sft", "wide", "dora")] == [True, True, True, False]
    rows = [row(i, "dora") for i in range(2)]  # but by itself it is a batch like any
    decoding = batch(roles)
    decoding.join(rows)
    finish(decoding)
    assert [r.ids for r in rows] == [alone(roles, r) for r in rows]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_stacked_adapters_compute_what_peft_computes_one_by_one(
    roles: Any, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if half:  # the base in half precision, its adapters in float32: PEFT's default
        for module in roles.base.modules():
            layer = getattr(module, "base_layer", None)
            if layer is not None:
                layer.to(torch.bfloat16)
    layer = roles.base.model.layers[1].mlp.up_proj
    x = torch.randn(4, 3, 32, dtype=torch.bfloat16 if half else torch.float32)
    found = []
    with torch.no_grad(), roles.mixed(["sft", None, "wide", "dpo"]):
        found.append(layer(x))
        assert layer._rows is not None
        monkeypatch.setattr(FusedLoraLinear, "_stacks", lambda *_: None)
        found.append(layer(x))
    assert torch.allclose(found[0], found[1], atol=0.05 if half else 1e-5)
    assert not torch.allclose(found[0], layer.get_base_layer()(x), atol=0.1)
    assert layer._rows is None


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.5), (5, 0.7), (0, 1.0)])
def test_top_k_and_top_p_are_those_of_transformers(top_k: int, top_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20) * 2
    warpers = [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    kept = LogitsProcessorList(warpers)(torch.zeros(1, 1), logits[None] / 0.9)[0] > -torch.inf
    generator = torch.Generator().manual_seed(1)
    drawing = Drawing(temperature=0.9, top_k=top_k, top_p=top_p)
    drawn = {choose(logits, drawing, generator) for _ in range(3000)}
    probable = (logits / 0.9).softmax(-1) > 0.01
    assert drawn <= set(kept.nonzero().flatten().tolist())
    assert drawn >= set((kept & probable).nonzero().flatten().tolist())
