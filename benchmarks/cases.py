"""The benchmark's cases, and the models and prompts that both sides of a case read."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.runs.run import write_json

CASE_FILE, PROMPTS_FILE = "case.json", "prompts.json"
BASE, REWARD, ADAPTER = "base", "reward", "reward-adapter"
PAD, EOS = 0, 2


@dataclass(frozen=True)
class Case:
    """One comparison of both sides.

    `batch` is episodes per rollout; `prompt` and `completion` are tokens per row. `micro_batch` rows
    go through a model at once on both sides (in `world`, as many as in its recipe). With `forced` no
    completion ends early. `rollouts` are timed, after one warm-up rollout.
    """

    name: str
    batch: int
    micro_batch: int
    prompt: int
    completion: int
    rollouts: int
    hidden: int = 0  # 0: the embedded world's SFT policy
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

    @property
    def world(self) -> bool:
        """Whether the case trains the embedded world's policy."""
        return self.hidden == 0


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

CASES = {
    case.name: case
    for case in (
        Case("world", batch=64, micro_batch=32, prompt=0, completion=64, rollouts=4, forced=False),
        Case("fixed-5m", batch=64, micro_batch=8, rollouts=2, **_CPU, **_SMALL),
        Case("fixed-129m", batch=16, micro_batch=4, rollouts=1, **_CPU, **_MIDDLE),
        Case("cuda-0.5b", **_QWEN_HALF, **_CUDA),
        Case("cuda-0.5b-4bit", bits=4, **_QWEN_HALF, **_CUDA),
        Case("cuda-1.5b", **_QWEN_FULL, **_CUDA),
        Case("cuda-1.5b-4bit", bits=4, **_QWEN_FULL, **_CUDA),
    )
}


def prepare(case: Case, folder: Path, *, sft: Path | None, reward: Path | None) -> None:
    """Write the inputs of both sides: `case.json`, `prompts.json`, the base, and a reward model.

    The old trainer takes whole models, so the world's SFT adapter and reward model are merged into
    copies of the base. Our side reads the adapters of the runs.

    Raises: ConfigError if the case `world` lacks its runs.
    """
    from transformers import set_seed

    set_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if not case.world:
        prompts = _random(case, folder)
    elif sft is not None and reward is not None:
        prompts = _world(folder, sft, reward)
    else:
        raise ConfigError("the case world needs --sft and --reward, runs of `make quickstart`")
    runs = {"sft": str(sft), "reward": str(reward)} if case.world else {}
    write_json(folder / CASE_FILE, dataclasses.asdict(case) | {"runs": runs})
    write_json(folder / PROMPTS_FILE, {"prompts": prompts})


def read(folder: Path) -> tuple[Case, list[dict[str, Any]], dict[str, str]]:
    """Read the output of `prepare`: the case, its prompts (`prompt` and `ids` each), and its runs."""
    content = json.loads((folder / CASE_FILE).read_text(encoding="utf-8"))
    runs = content.pop("runs")
    prompts = json.loads((folder / PROMPTS_FILE).read_text(encoding="utf-8"))["prompts"]
    return Case(**content), prompts, runs


def _random(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Write a random Llama, a tokenizer of one word per token, and prompts of equal length."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from toolkit.models.adapters import write_adapter
    from toolkit.models.heads import ScalarHead

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
    adapted = get_peft_model(model, LoraConfig(r=case.lora_r, target_modules="all-linear"))
    write_adapter(
        folder / ADAPTER, adapted.peft_config["default"], get_peft_model_state_dict(adapted)
    )
    ScalarHead(case.hidden).save(folder / ADAPTER)
    ids = torch.randint(3, case.vocabulary, (4 * case.batch, case.prompt)).tolist()
    return [{"prompt": " ".join(f"w{i}" for i in row), "ids": row} for row in ids]


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
