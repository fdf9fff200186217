"""Every kind of adapter in every role: trained and loaded back, or rejected with a reason."""

import json
import math
import shutil

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed

from tests.conftest import ROOT, fresh_roles
from tests.models.methods import call
from toolkit.app.workbench import Workbench
from toolkit.cli import run
from toolkit.models.adapters import as_lora, read_adapter
from toolkit.models.arguments import METHODS
from toolkit.models.passes import collate, completion_logprobs, scores
from toolkit.models.roles import REWARD, Roles
from toolkit.recipe import find
from toolkit.runs.run import Run
from toolkit.sampling.decoding import decode
from toolkit.trainers.supervised import orthogonality

EXTRA = {
    "whole layer": {"lora_modules_to_save": ["lm_head"]},
    "dora and rslora": {"peft_method": "dora", "use_rslora": True},
}
KINDS = {method: {"peft_method": method} for method in METHODS} | EXTRA
PROMPTS, COMPLETIONS = [[1, 20, 30, 40], [1, 25]], [[50, 60, 2], [70, 80, 90, 2]]


@pytest.fixture(scope="module")
def sft_runs(tiny_base, tmp_path_factory):
    """SFT with each kind of adapter, trained on first use."""
    runs = {}

    def run(kind: str):
        if kind not in runs:
            folder = tmp_path_factory.mktemp("sft") / kind.replace(" ", "-")
            assert call("sft", folder, tiny_base, **KINDS[kind]) == 0
            runs[kind] = folder
        return runs[kind]

    return run


@pytest.fixture(scope="module")
def dpo_runs(sft_runs, tiny_base, tmp_path_factory):
    """Exit code and folder of DPO after SFT with each method, trained on first use."""
    runs = {}

    def run(method: str):
        if method not in runs:
            folder = tmp_path_factory.mktemp("dpo") / method
            runs[method] = call("dpo", folder, tiny_base, parent=sft_runs(method)), folder
        return runs[method]

    return run


def table() -> dict[str, dict[str, str]]:
    """The first table of docs/adapters.md: method -> stage -> its cell."""
    text = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    start = text[text.index("| `peft_method` | SFT") :]
    lines = start[: start.index("\n\n")].splitlines()
    header, _, *rows = [[c.strip(" `") for c in line.strip("|").split("|")] for line in lines]
    stages = ("SFT", "DPO", "reward", "PPO")
    places = [header.index(stage) for stage in stages]
    return {row[0]: {s: row[p] for s, p in zip(stages, places, strict=True)} for row in rows}


def test_table_lists_every_method():
    assert list(table()) == list(METHODS)
    assert {cell for row in table().values() for cell in row.values()} == {"yes", "no"}


def test_measured_table_counts_parameters_by_hand():
    """The world's base has 5 layers of width 192 with 512 inside the feed-forward part."""
    text = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    counts = {r[1].strip(" `"): r[3].strip() for r in rows if len(r) == 8 and "kB" in r[4]}
    assert list(counts) == ["none", *METHODS]
    square, wide = 192 + 192, 192 + 512  # a row and a column of each triplet
    lora = 5 * 16 * (4 * square + 3 * wide)
    by_hand = {"none": 0, "lora": lora, "rslora": lora}
    by_hand["dora"] = lora + 5 * (5 * 192 + 2 * 512)  # a magnitude per output feature
    by_hand["adalora"] = 5 * 24 * (4 * square + 3 * wide + 7)  # 1.5 times the rank, and E
    by_hand |= {"prefix": 20 * 2 * 5 * 192, "prompt": 20 * 192, "ia3": 5 * (192 + 192 + 512)}
    for method, count in counts.items():
        assert int(count.replace(",", "")) == by_hand[method], method


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_recipes_support_the_methods_in_the_table(
    method, sft_runs, dpo_runs, tiny_base, tmp_path, capsys
):
    sft, cells = sft_runs(method), table()[method]
    assert cells["SFT"] == "yes"
    start = load_file(sft / "adapter_model.safetensors")
    reward = tmp_path / "reward"
    dpo_code, dpo = dpo_runs(method)
    codes = {
        "DPO": dpo_code,
        "reward": call("reward", reward, tiny_base, parent=sft),
    }
    if codes["reward"] != 0:  # a policy may have a reward model of another kind
        assert call("reward", reward, tiny_base, parent=sft_runs("lora")) == 0
    capsys.readouterr()
    codes["PPO"] = call("ppo", tmp_path / "ppo", tiny_base, parent=sft, reward_model=reward)
    for stage, code in codes.items():
        assert code == (0 if cells[stage] == "yes" else 2), stage
    if cells["PPO"] == "no":
        assert "share one PEFT model" in capsys.readouterr().err
    folders = {"DPO": dpo, "reward": reward, "PPO": tmp_path / "ppo"}
    trained = [folders[stage] for stage, code in codes.items() if code == 0]
    for folder in trained:
        end = load_file(folder / "adapter_model.safetensors")
        assert end.keys() == start.keys()
        assert any((end[k] != start[k]).any() for k in start), folder


@pytest.mark.parametrize("method", ["prefix", "prompt", "ia3"])
def test_reward_model_must_be_lora(method, sft_runs, tiny_base, tmp_path, capsys):
    assert call("reward", tmp_path / "reward", tiny_base, parent=sft_runs(method)) == 2
    assert "a reward model cannot be" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["adalora", "prefix", "prompt", "ia3"])
def test_new_ppo_policy_must_be_lora(method, reward_run, tiny_base, tmp_path, capsys):
    options = {"use_peft": True, "peft_method": method, "reward_model": reward_run}
    assert call("ppo", tmp_path / "ppo", tiny_base, **options) == 2
    assert "share one PEFT model" in capsys.readouterr().err


@torch.no_grad()
def by_plain_peft(base, run) -> torch.Tensor:
    """Log-probabilities of the completions' tokens, each row alone, without the toolkit."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = (model if run is None else PeftModel.from_pretrained(model, run)).eval()
    result = torch.zeros(2, 4)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        logits = logits[-ids.shape[1] :]  # prompt tuning prepends its own
        for t, token in enumerate(completion):
            result[row, t] = logits[len(prompt) + t - 1].log_softmax(-1)[token]
    return result


@torch.no_grad()
def greedy_by_plain_peft(base, run, prompt, steps):
    """Greedy sampling that reads the whole sequence for every token."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model, ids = PeftModel.from_pretrained(model, run).eval(), list(prompt)
    for _ in range(steps):
        rows = torch.tensor([ids])
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_roles_equal_plain_peft(kind, sft_runs, tiny_base, model_config, reward_run):
    run, batch = sft_runs(kind), collate(PROMPTS, COMPLETIONS, pad_id=0)
    expected, bare = by_plain_peft(tiny_base, run), by_plain_peft(tiny_base, None)
    assert (expected - bare).abs().max() > 1e-3
    for reward_first in (True, False):  # beside a LoRA, attached before or after
        roles = fresh_roles(model_config)
        if reward_first:
            roles.attach(REWARD, reward_run, head=True)
        roles.attach("policy", run)
        if not reward_first:
            roles.attach(REWARD, reward_run, head=True)
        with torch.no_grad(), roles.using(REWARD) as model:
            score = scores(model, roles.heads[REWARD], batch)
        for context in (roles.using, roles.merged):
            with torch.no_grad(), context("policy") as model:
                logprobs, _ = completion_logprobs(model.eval(), batch, temperature=1.0)
            torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=1e-5)
        with torch.no_grad(), roles.using(None) as model:
            logprobs, _ = completion_logprobs(model, batch, temperature=1.0)
        torch.testing.assert_close(logprobs, bare, atol=2e-5, rtol=1e-5)
        with torch.no_grad(), roles.using(REWARD) as model:  # the hooks are removed
            assert torch.equal(scores(model, roles.heads[REWARD], batch), score)
        with roles.merged("policy") as model:
            completions = decode(
                model, PROMPTS, max_new_tokens=5, temperature=0, stop=[-1], pad_id=0
            ).completions
        assert completions == [greedy_by_plain_peft(tiny_base, run, p, 5) for p in PROMPTS]


@pytest.mark.parametrize("method", METHODS)
def test_dpo_starts_at_its_reference(method, dpo_runs):
    """Loss ln 2 and margin 0 at the first step: the reference is SFT, not the bare base."""
    code, folder = dpo_runs(method)
    assert code == 0
    first, second, *_ = Run.load(folder).metrics()
    if method not in ("lora", "rslora", "dora", "adalora"):  # without dropout
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert second["rewards/margins"] != 0


RESUMED = [("sft", m) for m in ("dora", "prefix", "prompt", "ia3")]
RESUMED += [("dpo", m) for m in ("prefix", "prompt", "ia3")]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "method"), RESUMED)
def test_run_resumes_to_same_adapter(recipe, method, sft_runs, tiny_base, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    if recipe == "dpo":
        options |= {"parent": sft_runs(method)}
    else:
        options |= KINDS[method] | ({"lora_dropout": 0.0} if method == "dora" else {})
    assert call(recipe, tmp_path / "run", tiny_base, **options) == 0
    expected = load_file(tmp_path / "run" / "adapter_model.safetensors")
    for name in ("checkpoint-4/adapter_model.safetensors", "adapter_model.safetensors"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "checkpoint-4").rename(tmp_path / "gone")
    Run.load(tmp_path / "run").fail(RuntimeError("out of memory"))
    assert call(recipe, tmp_path / "run", tiny_base, resume_from_checkpoint=True, **options) == 0
    resumed = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(resumed[name], tensor), name


def test_adalora_cannot_resume(tiny_base, tmp_path, capsys):
    options = {"peft_method": "adalora", "save_strategy": "steps", "save_steps": 2}
    assert call("sft", tmp_path, tiny_base, **options) == 0
    Run.load(tmp_path).fail(RuntimeError("out of memory"))
    assert call("sft", tmp_path, tiny_base, resume_from_checkpoint=True, **options) == 2
    assert "adalora cannot be resumed" in capsys.readouterr().err


def test_prefix_rejects_gradient_checkpointing(sft_runs, tiny_base, tmp_path, capsys):
    options = {"peft_method": "prefix", "gradient_checkpointing": True}
    assert call("sft", tmp_path / "sft", tiny_base, **options) == 2
    parent = sft_runs("prefix")
    options = {"parent": parent, "gradient_checkpointing": True}
    assert call("dpo", tmp_path / "dpo", tiny_base, **options) == 2
    assert capsys.readouterr().err.count("set `gradient_checkpointing: false`") == 2


@pytest.mark.parametrize("method", [m for m in METHODS if m != "prefix"])
def test_gradient_checkpointing_gives_same_adapter(method, tiny_base, tmp_path):
    adapters = []
    for on in (False, True):
        options = KINDS[method] | {"max_steps": 2, "gradient_checkpointing": on}
        if method in ("lora", "rslora", "dora", "adalora"):
            options["lora_dropout"] = 0.0
        assert call("sft", tmp_path / str(on), tiny_base, **options) == 0
        adapters.append(load_file(tmp_path / str(on) / "adapter_model.safetensors"))
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(tensor, adapters[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_evaluation_and_app_mix_all_kinds(sft_runs, tiny_base, tmp_path, reward_run):
    """On one base beside a LoRA reward model, with KL to the LoRA SFT run."""
    runs = tmp_path / "runs"
    for method in METHODS:
        shutil.copytree(sft_runs(method), runs / method)
    reward = Run.start(runs / "reward", recipe="reward", parents={"adapter": str(runs / "lora")})
    reward.base = Run.load(runs / "lora").base
    shutil.copytree(reward_run, runs / "reward", dirs_exist_ok=True)
    reward.finish()
    words = ["--runs", *(str(runs / m) for m in METHODS), "--reward_model", str(runs / "reward")]
    words += ["--model_name_or_path", str(tiny_base), "--output_dir", str(runs / "report")]
    words += "--max_prompts 4 --max_new_tokens 4 --few_shot 1".split()
    assert run(find("evaluate"), words) == 0
    report = json.loads((runs / "report" / "report.json").read_text())["checkpoints"]
    assert set(report) == {"base", *METHODS}
    kl = {name: entry["kl_to_sft"] for name, entry in report.items()}
    assert kl["lora"] == pytest.approx(0.0, abs=1e-5)
    assert len({round(value, 4) for value in kl.values()}) == len(kl)
    bench = Workbench.open(str(tiny_base), runs)
    assert not bench.catalog.broken
    ids = {entry.name: entry.id for entry in bench.catalog.checkpoints.values()}
    judge = next(iter(bench.catalog.rewards))
    halves = [list(ids.values())[i::2] for i in (0, 1)]  # the app compares six at most
    answers = [
        answer
        for half in halves
        for answer in bench.compare("Where?", half, reward=judge, max_new_tokens=4)
    ]
    assert [a.problem for a in answers] == [None] * len(ids)
    assert all(a.score is not None and a.kl is not None for a in answers)


def random_adalora(base) -> PeftModel:
    """An AdaLoRA of rank 3 on the tiny base, with random weights."""
    set_seed(5)
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=3,
        target_r=2,
        lora_alpha=7,
        total_step=10,
        target_modules=["q_proj", "down_proj"],
    )
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    return model


def test_adalora_equals_converted_lora(tiny_base, model_config, tmp_path):
    model = random_adalora(tiny_base)
    keep = {"layers.0.self_attn.q_proj": [1, 0, 1], "layers.0.mlp.down_proj": [0, 0, 1]}
    keep |= {"layers.1.self_attn.q_proj": [1, 1, 1], "layers.1.mlp.down_proj": [0, 0, 0]}
    pattern = {f"model.{k}.lora_E": [bool(x) for x in v] for k, v in keep.items()}
    model.peft_config["default"].rank_pattern = pattern
    for name, layer in model.base_model.model.named_modules():
        if f"{name}.lora_E" in pattern:
            with torch.no_grad():
                layer.lora_E["default"] *= torch.tensor(pattern[f"{name}.lora_E"]).unsqueeze(1)
    ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    config, weights = read_adapter(tmp_path)
    assert sorted(config.rank_pattern.values()) == [1, 2, 3]
    assert not any("layers.1.mlp" in key for key in weights)
    roles = Roles(fresh_roles(model_config).base, {})
    roles.attach("policy", tmp_path)
    with torch.no_grad(), roles.using("policy") as converted:
        torch.testing.assert_close(converted(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_as_lora_by_hand():
    weights = {"base_model.model.a.lora_A": torch.tensor([[1.0, 2.0]])}
    weights["base_model.model.a.lora_E"] = torch.tensor([[3.0]])
    weights["base_model.model.a.lora_B"] = torch.tensor([[4.0], [5.0], [6.0]])
    config = AdaLoraConfig(init_r=2, target_r=1, lora_alpha=10, total_step=9)
    lora, new = as_lora(config, weights)
    product = new["base_model.model.a.lora_B.weight"] @ new["base_model.model.a.lora_A.weight"]
    expected = torch.tensor([[12.0, 24.0], [15.0, 30.0], [18.0, 36.0]]) * 5  # alpha / init_r
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=0)
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (1, 1, {"a"})


def test_orthogonality_equals_peft(tiny_base):
    model = random_adalora(tiny_base)
    ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    with torch.no_grad():
        whole = model(input_ids=ids, labels=ids).loss
        model.peft_config["default"].orth_reg_weight = 0.0
        alone = model(input_ids=ids, labels=ids).loss
        model.peft_config["default"].orth_reg_weight = 0.5
        torch.testing.assert_close(orthogonality(model), whole - alone, rtol=1e-4, atol=0)


def test_adalora_ranks_differ_within_budget(tiny_base, tmp_path):
    options = {"peft_method": "adalora", "lora_r": 2, "max_steps": 20}
    options |= {"lora_target_modules": "all-linear"}
    assert call("sft", tmp_path, tiny_base, **options) == 0
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    ranks = config["rank_pattern"].values()
    assert config["peft_type"] == "LORA"
    assert sum(ranks) <= 2 * 14  # two layers with seven matrices each, rank 2 on average
    assert set(ranks) <= {1, 2, 3} and len(set(ranks)) > 1  # rank 3 at the start


def test_adalora_needs_two_steps(tiny_base, tmp_path, capsys):
    assert call("sft", tmp_path, tiny_base, peft_method="adalora", max_steps=1) == 2
    assert "this training has 1 step" in capsys.readouterr().err
