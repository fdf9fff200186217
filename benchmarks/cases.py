"""The benchmark's cases, and their models and prompts, which this toolkit and TRL both load."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.real_model import obtain
from toolkit.errors import ConfigError
from toolkit.runs.run import write_json

CASE_FILE, PROMPTS_FILE, ROWS_FILE = "case.json", "prompts.json", "rows.jsonl"
BASE, REWARD, ADAPTER, POLICY = "base", "reward", "reward-adapter", "sft-adapter"
REAL_BASE = ROOT / "build" / "smollm2-135m"
REAL_DATA = ROOT / "recipes" / "configs" / "smollm2-135m"
PAD, EOS = 0, 2


@dataclass(frozen=True)
class Case:
    """One comparison of both sides.

    `batch` is episodes per rollout; `prompt` and `completion` are tokens per row. `micro_batch` rows
    go through a model at once on both sides (in `world`, as many as in its recipe). With `forced` no
    completion ends early. `rollouts` are timed, after one warm-up rollout. `real`: SmolLM2-135M-Instruct
    and the prompts of its preset. For a `recipe` other than PPO, `rollouts` are optimizer steps.
    """

    name: str
    batch: int
    micro_batch: int
    prompt: int
    completion: int
    rollouts: int
    hidden: int = 0  # 0: the embedded world's SFT policy, or the real model
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    forced: bool = True
    epochs: int = 4
    minibatches: int = 1
    lora_r: int = 16
    dtype: str = "float32"
    bits: int = 0
    cuda: bool = False
    real: bool = False
    recipe: str = "ppo"

    @property
    def world(self) -> bool:
        """Whether the case trains the embedded world's policy."""
        return self.hidden == 0 and not self.real


_SMALL: dict[str, Any] = dict(hidden=256, layers=4, heads=4, intermediate=608, vocabulary=4096)
_MIDDLE: dict[str, Any] = dict(
    hidden=768, layers=12, heads=12, intermediate=1856, vocabulary=32_000
)
_QWEN_HALF: dict[str, Any] = dict(  # the shape of Qwen2.5-0.5B
    hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, vocabulary=151_936
)
_QWEN_FULL: dict[str, Any] = dict(  # the shape of Qwen2.5-1.5B
    hidden=1536, layers=28, heads=12, kv_heads=2, intermediate=8960, vocabulary=151_936
)
_CUDA: dict[str, Any] = dict(batch=64, micro_batch=8, prompt=128, completion=256, rollouts=1)
_CUDA |= dict(forced=False, dtype="bfloat16", cuda=True)
_CPU: dict[str, Any] = dict(prompt=32, completion=48)
_REAL: dict[str, Any] = dict(batch=16, micro_batch=8, prompt=0, completion=60, rollouts=1)
_REAL |= dict(forced=False, real=True)
_STEPS: dict[str, Any] = _REAL | dict(batch=8, rollouts=10, dtype="bfloat16")

CASES = {
    case.name: case
    for case in (
        Case("world", batch=64, micro_batch=32, prompt=0, completion=64, rollouts=4, forced=False),
        Case("fixed-5m", batch=64, micro_batch=8, rollouts=2, **_CPU, **_SMALL),
        Case("fixed-129m", batch=16, micro_batch=4, rollouts=1, **_CPU, **_MIDDLE),
        Case("smollm2-fp32", **_REAL),
        Case("smollm2-bf16", dtype="bfloat16", **_REAL),
        Case("sft", recipe="sft", **_STEPS),
        Case("reward", recipe="reward", **_STEPS),
        Case("dpo", recipe="dpo", **_STEPS),
        Case("cuda-0.5b", **_QWEN_HALF, **_CUDA),
        Case("cuda-0.5b-4bit", bits=4, **_QWEN_HALF, **_CUDA),
        Case("cuda-1.5b", **_QWEN_FULL, **_CUDA),
        Case("cuda-1.5b-4bit", bits=4, **_QWEN_FULL, **_CUDA),
    )
}


def prepare(case: Case, folder: Path, *, sft: Path | None, reward: Path | None) -> None:
    """Write the inputs of both sides: `case.json`, `prompts.json`, the base, and the adapters.

    For SFT, reward and DPO also `rows.jsonl`, one row for each place in a batch.

    The old trainer takes whole models, so the world's SFT adapter and reward model are merged into
    copies of the base. Our side reads the adapters of the runs.

    Raises: ConfigError if the case `world` lacks its runs.
    """
    from transformers import set_seed

    set_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    runs: dict[str, str] = {}
    if case.real:
        runs = {"sft": str(folder / POLICY), "reward": str(folder / ADAPTER)}
        prompts = _real(case, folder)
    elif not case.world:
        prompts = _random(case, folder)
    elif sft is not None and reward is not None:
        prompts, runs = _world(folder, sft, reward), {"sft": str(sft), "reward": str(reward)}
    else:
        raise ConfigError("the case world needs --sft and --reward, runs of `make quickstart`")
    write_json(folder / CASE_FILE, dataclasses.asdict(case) | {"runs": runs})
    write_json(folder / PROMPTS_FILE, {"prompts": prompts})
    if case.recipe != "ppo":
        rows = "".join(json.dumps(row) + "\n" for row in _rows(case, prompts))
        (folder / ROWS_FILE).write_text(rows, encoding="utf-8")


def read(folder: Path) -> tuple[Case, list[dict[str, Any]], dict[str, str]]:
    """Read the output of `prepare`: the case, its prompts (`prompt` and `ids` each), and its runs."""
    content = json.loads((folder / CASE_FILE).read_text(encoding="utf-8"))
    runs = content.pop("runs")
    prompts = json.loads((folder / PROMPTS_FILE).read_text(encoding="utf-8"))["prompts"]
    return Case(**content), prompts, runs


def _random(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Write a random Llama, a tokenizer of one word per token, and prompts of equal length."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<unk>": 1, "<eos>": EOS}
    words |= {f"w{i}": i for i in range(3, case.vocabulary)}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / BASE)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads or case.heads,
        intermediate_size=case.intermediate,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    if not case.forced:
        _let_completions_end(model, case)
    model.to(getattr(torch, case.dtype)).save_pretrained(folder / BASE)
    _write_adapters(model, case, folder)
    ids = torch.randint(3, case.vocabulary, (4 * case.batch, case.prompt)).tolist()
    return [{"prompt": " ".join(f"w{i}" for i in row), "ids": row} for row in ids]


def _real(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Link the real model; write its adapters and the prompts of its preset."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from toolkit.data.encoding import encode_prompt

    base = folder / BASE
    base.unlink(missing_ok=True)
    base.symlink_to(obtain(REAL_BASE), target_is_directory=True)
    _write_adapters(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), case, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    lines = (REAL_DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    return [{"prompt": text, "ids": encode_prompt(tokenizer, text)} for text in texts]


def _rows(case: Case, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Demonstrations or pairs for all steps; the rejected answer is that of the next prompt."""
    lines = (REAL_DATA / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if not case.real:
        rows = [{"prompt": p["prompt"], "completion": f" {p['prompt']}"} for p in prompts]
    chosen = [row["completion"] for row in rows]
    if case.recipe != "sft":
        rows = [
            {"prompt": row["prompt"], "chosen": answer, "rejected": other}
            for row, answer, other in zip(rows, chosen, chosen[1:] + chosen[:1], strict=True)
        ]
    return rows[: case.batch * (1 + case.rollouts)]


def _write_adapters(model: Any, case: Case, folder: Path) -> None:
    """Write a small random LoRA as SFT and as reward adapter; changes the model."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    from toolkit.models.adapters import write_adapter
    from toolkit.models.heads import ScalarHead

    adapted = get_peft_model(model, LoraConfig(r=case.lora_r, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    for name in (POLICY, ADAPTER):
        weights = get_peft_model_state_dict(adapted)
        write_adapter(folder / name, adapted.peft_config["default"], weights)
    ScalarHead(model.config.hidden_size).save(folder / ADAPTER)


def _let_completions_end(model: Any, case: Case) -> None:
    """Set the head's EOS row so that completions end at random, after half their length on average."""
    import torch

    with torch.no_grad():
        tokens = torch.randint(3, case.vocabulary, (4, 64))
        mean = model.model(tokens).last_hidden_state.float().mean((0, 1))  # (d,)
        logit = math.log(2 * case.vocabulary / case.completion)
        model.lm_head.weight[EOS] = logit * mean / mean.square().sum()


def _world(folder: Path, sft: Path, reward: Path) -> list[dict[str, Any]]:
    """Write the embedded base with the SFT adapter merged, and the merged reward model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from toolkit.data.encoding import encode_prompt
    from toolkit.models.heads import ScalarHead
    from toolkit.models.tokenizer import load_tokenizer
    from toolkit.world import resolve_base
    from toolkit.world.datasets import load

    base = resolve_base(None)
    tokenizer = load_tokenizer(base)
    for run, name in ((sft, BASE), (reward, REWARD)):
        whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(whole, run).merge_and_unload()
        if name == REWARD:
            scalar = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=1, dtype=torch.float32
            )
            scalar.model.load_state_dict(merged.model.state_dict())
            scalar.score.weight.data = ScalarHead.load(run).weight.data.clone()
            merged = scalar
        merged.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = load("prompts")["train"]
    return [{"prompt": r["prompt"], "ids": encode_prompt(tokenizer, r["prompt"])} for r in rows]
