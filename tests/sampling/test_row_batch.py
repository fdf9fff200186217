"""Each row of a batch of several adapters gets the tokens that it would get alone."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from tests.app.conftest import make_run, runs, runs_template, tiny_base  # noqa: F401  (fixtures)
from tests.conftest import trainable_names
from toolkit.app.workbench import Workbench
from toolkit.kernels import use_kernels
from toolkit.kernels.fused_lora import FusedLoraLinear
from toolkit.sampling.decoding import pad_left
from toolkit.sampling.row_batch import Row, RowBatch, choose
from toolkit.sampling.settings import Drawing

pytestmark = pytest.mark.slow

PROMPTS = [[5, 9, 30], [7] * 9, [40, 41, 42, 43, 44], [11]]


def load_roles(base: str, folder: Path) -> Any:
    """Three LoRAs of two ranks, and one with DoRA, on the tiny base in float32."""
    torch.manual_seed(0)
    roles = Workbench.open(base, folder).roles
    for name in ("sft", "dpo"):
        roles.attach(name, folder / name)
    for name, rank, dora in (("wide", 8, False), ("dora", 4, True)):
        config = LoraConfig(
            r=rank, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", use_dora=dora
        )
        roles.create(name, config)
        for parameter in roles.parameters(name):
            torch.nn.init.normal_(parameter, std=0.3)
    return roles


@pytest.fixture
def roles(tiny_base: str, runs: Path) -> Any:  # noqa: F811
    """See `load_roles`."""
    return load_roles(tiny_base, runs)


def batch(roles: Any) -> RowBatch:
    return RowBatch(roles, stop=[2], pad_id=0)


def row(i: int, adapter: str | None, **drawing: Any) -> Row:
    return Row(
        list(PROMPTS[i]), adapter, Drawing(**{"max_new_tokens": 12, "temperature": 0} | drawing)
    )


def alone(roles: Any, single: Row) -> list[int]:
    """Greedy tokens of a row, with one full pass for each token, under its role alone."""
    ids = list(single.prompt)
    with torch.no_grad(), roles.using(single.adapter) as model:
        for _ in range(single.drawing.max_new_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
    return ids[len(single.prompt) :]


def finish(decoding: RowBatch) -> None:
    while decoding.rows:
        decoding.step()
    decoding.pause()


@pytest.mark.parametrize("kernels", [True, False])
def test_greedy_rows_equal_each_row_alone(
    tiny_base: str,  # noqa: F811
    runs: Path,  # noqa: F811
    kernels: bool,
) -> None:
    with use_kernels(kernels):
        roles = load_roles(tiny_base, runs)
        rows = [row(i, name) for i, name in enumerate(["sft", None, "dpo", "wide"])]
        decoding = batch(roles)
        decoding.join(rows)
        finish(decoding)
        assert [r.ids for r in rows] == [alone(roles, r) for r in rows]
        assert len({tuple(alone(roles, row(0, n))) for n in ("sft", None, "dpo", "wide")}) == 4


def test_equal_contexts_of_a_role_are_prefilled_once(
    roles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(0, "sft"), row(0, "dpo"), row(0, "sft"), row(1, "sft")]
    prefilled = []

    def recorded(prompts: list[list[int]], pad: int) -> Any:
        prefilled.append(len(prompts))
        return pad_left(prompts, pad)

    monkeypatch.setattr("toolkit.sampling.row_batch.pad_left", recorded)
    decoding = batch(roles)
    decoding.join(rows)
    finish(decoding)
    assert prefilled == [3]
    assert [r.ids for r in rows] == [alone(roles, r) for r in rows]


def test_cache_drops_columns_of_finished_rows(roles: Any) -> None:
    decoding = batch(roles)
    decoding.join([row(1, "sft", max_new_tokens=2)])  # the longest prompt
    later = row(3, "dpo", max_new_tokens=6)
    decoding.step()
    decoding.join([later])
    decoding.step()
    last = row(0, "sft")
    decoding.join([last])
    assert decoding._attention.shape[1] == max(len(later.prompt) + 1, len(last.prompt))
    finish(decoding)
    assert [later.ids, last.ids] == [alone(roles, later), alone(roles, last)]


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
        if len(decoding.rows) > 1 and not gone:  # a visitor closes the page
            gone.append(decoding.rows[0])
            decoding.leave(gone)
    decoding.pause()
    for single in rows:
        expected = alone(roles, single)
        assert single.ids == (expected[: len(single.ids)] if single in gone else expected)


def test_seed_gives_the_same_tokens_in_any_batch(roles: Any) -> None:
    first, decoding = row(0, "sft", temperature=1.0, seed=4), batch(roles)
    decoding.join([first])
    finish(decoding)
    others = [row(i % 4, n, temperature=1.0, seed=i) for i, n in enumerate(["dpo", None, "wide"])]
    second = row(0, "sft", temperature=1.0, seed=4)
    decoding.join(others)
    decoding.step()
    decoding.join([second])
    finish(decoding)
    assert second.ids == first.ids


def test_pause_restores_the_base(roles: Any) -> None:
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        logits, names = roles.model(ids).logits, trainable_names(roles)
        decoding = batch(roles)
        decoding.join([row(0, "sft"), row(1, "dpo")])
        decoding.step()
        decoding.pause()
        assert torch.equal(roles.model(ids).logits, logits)
    assert trainable_names(roles) == names


def test_dora_rows_form_a_batch_of_their_own(roles: Any) -> None:
    assert [roles.can_mix(n) for n in (None, "sft", "wide", "dora")] == [True, True, True, False]
    rows = [row(i, "dora") for i in range(2)]
    decoding = batch(roles)
    decoding.join(rows)
    finish(decoding)
    assert [r.ids for r in rows] == [alone(roles, r) for r in rows]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_one_adapter_per_row_equals_peft(
    roles: Any, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if half:  # the base in half precision, its adapters in float32: PEFT's default
        for module in roles.base.modules():
            layer = getattr(module, "base_layer", None)
            if layer is not None:
                layer.to(torch.bfloat16)
    layer = roles.base.model.layers[1].mlp.up_proj
    x = torch.randn(4, 3, 32, dtype=torch.bfloat16 if half else torch.float32)
    with torch.no_grad(), roles.mixed(["sft", None, "wide", "dpo"]):
        output = layer(x)
        assert layer._row_weights is not None
        monkeypatch.setattr(FusedLoraLinear, "_weights_per_row", lambda *_: None)
        expected = layer(x)
    assert torch.allclose(output, expected, atol=0.05 if half else 1e-5)
    assert not torch.allclose(output, layer.get_base_layer()(x), atol=0.1)
    assert layer._row_weights is None


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.5), (5, 0.7), (0, 1.0)])
def test_top_k_and_top_p_equal_those_of_transformers(top_k: int, top_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20) * 2
    warpers = [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    kept = LogitsProcessorList(warpers)(torch.zeros(1, 1), logits[None] / 0.9)[0] > -torch.inf
    drawing = Drawing(temperature=0.9, top_k=top_k, top_p=top_p)
    row = Row([1], None, drawing, generator=torch.Generator().manual_seed(1))
    tokens = set(choose(logits.repeat(3000, 1), [row] * 3000).tolist())
    probable = (logits / 0.9).softmax(-1) > 0.01
    assert tokens <= set(kept.nonzero().flatten().tolist())
    assert tokens >= set((kept & probable).nonzero().flatten().tolist())
