"""Record what TRL 1.12's PPOTrainer computes in one PPO minibatch, for tests/parity/test_parity.py.

    make parity     # an environment with trl 1.12.0, then: python tests/parity/record.py

Everything is created from seeds: a tiny Llama as base, three LoRA adapters on it (policy, reference,
reward), a critic, prompts and completions. The old trainer gets the adapters merged, as separate
models, and the completions instead of its own samples. The recorded cases are

    full       completions of full length
    ended      completions that end early
    epochs     two epochs over `full`, with whitened rewards and a penalty for a missing end; only the
               critic's head is trained, so that the second epoch can be compared
    critic     `full`; the critic trains an adapter and its head, not all weights
    whitened   `ended` with whitened rewards
    unstopped  an end token in the middle, with the default `stop_token`
    stopped    a custom stop token, with a penalty for a missing end
    whole      eight of sixteen rows of different length in one micro-batch
    pieces     the same eight rows in four micro-batches
    slots      the same rows in four minibatches

Writes  tests/parity/trl-1.12.0.safetensors: weights, tokens, and all the trainer's intermediate
        tensors, read from the frame of its `train` at the end of the step. The metadata holds the
        arguments of `train` and the files of `save_model`.
"""

import inspect
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from tokens import (
    EPOCHS,
    EPOCHS_LEARNING_RATE,
    LEARNING_RATE,
    SETTINGS,
    SHAPE,
    STOP,
    TARGETS,
    tokenizer,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

FILE = Path(__file__).with_name("trl-1.12.0.safetensors")
BATCH, LENGTH = 8, 7
NEVER = (0,) * BATCH  # no completion ends
OLD = {"num_ppo_epochs": 1, "per_device_train_batch_size": BATCH, "stop_token": "eos"}
KEPT = ("responses", "logprobs", "ref_logprobs", "values", "scores", "rewards", "advantages")
KEPT += ("returns", "sequence_lengths", "padding_mask", "padding_mask_p1", "query_responses")
STATS = ("approxkl_stats", "pg_loss_stats", "vf_loss_stats", "entropy_stats", "ratio_stats")
STATS += ("pg_clipfrac_stats", "vf_clipfrac_stats")


def base() -> LlamaForCausalLM:
    """The frozen base, identical on each call."""
    set_seed(11)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.3))


def adapted(seed: int):
    """The base with a LoRA adapter whose weights are not zero."""
    model = get_peft_model(base(), LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def scalar_model(seed: int) -> LlamaForSequenceClassification:
    """A reward or value model whose trunk is the base with an adapter merged into it."""
    merged = adapted(seed).merge_and_unload()
    model = LlamaForSequenceClassification(
        LlamaConfig(**SHAPE, initializer_range=0.3, num_labels=1)
    )
    model.model.load_state_dict(merged.model.state_dict())
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=generator) * 0.2)
    return model


def with_adapter(value: LlamaForSequenceClassification, seed: int):
    """The same value model with an unmerged adapter, the only trainable weights beside the head."""
    value.model.load_state_dict(base().model.state_dict())
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS), value)
    weights = dict(adapted(seed).named_parameters())
    with torch.no_grad():
        for name, parameter in value.named_parameters():
            if "lora_" in name:
                parameter.copy_(weights[f"base_model.model.{name}"])
    value.score.requires_grad_(True)
    return value


def prompts(rows: int) -> list[list[int]]:
    """Prompts of three to six tokens."""
    generator = torch.Generator().manual_seed(5)
    return [
        [1, *torch.randint(3, 40, (2 + row % 4,), generator=generator).tolist()]
        for row in range(rows)
    ]


def completions(*lengths: int, end: int = 2, after: bool = True) -> torch.Tensor:
    """Token ids, `(B, T)`; a row ends with `end` after so many tokens; 0 means that it does not end.

    Padding after it, unless not `after`.
    """
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(3, 40, (len(lengths), LENGTH), generator=generator)
    ids[ids == end] += 1
    for row, length in enumerate(lengths):
        if length:
            ids[row, length - 1] = end
            if after:
                ids[row, length:] = 0
    return ids


class Recorder(TrainerCallback):
    """Reads the tensors of `PPOTrainer.train` from its frame when a step ends."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def on_step_end(self, args, state, control, **kwargs):
        frame = inspect.currentframe()
        while frame is not None and "pg_loss_stats" not in frame.f_locals:
            frame = frame.f_back
        assert frame is not None
        for name in (*KEPT, *STATS):
            value = frame.f_locals[name]
            self.tensors[name] = value.detach().clone().contiguous()


def record(
    completions: torch.Tensor, *, head_only: bool = False, adapter: bool = False, **changes: object
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """One rollout of the old trainer with its updates, and the files that it saves."""
    policy, value, reward = adapted(21), scalar_model(23), scalar_model(24)
    if adapter:
        value = with_adapter(value, 23)
    reference = adapted(22).merge_and_unload()
    prompt_rows = prompts(len(completions))
    width = max(map(len, prompt_rows))
    padded = torch.tensor([[0] * (width - len(p)) + p for p in prompt_rows])

    def batch_generation(model, queries, size, pad_token_id, generation_config):
        rows = [(padded == query).all(1).nonzero().item() for query in queries]
        together = torch.cat([queries, completions[rows]], 1)
        logits = ppo_trainer.forward(model, together, pad_token_id).logits
        return together, logits[:, queries.shape[1] - 1 : -1] / (SETTINGS["temperature"] + 1e-7)

    ppo_trainer.batch_generation = batch_generation
    critic = value.score if head_only else value
    trainable = [p for m in (policy, critic) for p in m.parameters() if p.requires_grad]
    rate = EPOCHS_LEARNING_RATE if head_only else LEARNING_RATE
    optimizer = torch.optim.SGD(trainable, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    recorder = Recorder()
    before = {k: v.clone() for k, v in get_peft_model_state_dict(policy).items()}
    value_before = {n: p.detach().clone() for n, p in value.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            PPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                total_episodes=BATCH,
                response_length=LENGTH,
                num_sample_generations=0,
                save_strategy="no",
                seed=3,
                **(OLD | SETTINGS | changes),
            ),
            tokenizer(),
            policy,
            reference,
            reward,
            Dataset.from_dict({"input_ids": prompt_rows}),
            value,
            optimizers=(optimizer, schedule),
            callbacks=[recorder],
        )
        trainer.train()
        trainer.save_model(f"{folder}/saved")
        saved = sorted(path.name for path in Path(folder, "saved").iterdir())
    found = recorder.tensors
    after = get_peft_model_state_dict(policy)
    found |= {f"update.{k}": (after[k] - v).detach() for k, v in before.items()}
    found["update.value_head"] = (value.score.weight - value_before["score.weight"]).detach()
    if adapter:
        for name, parameter in value.named_parameters():
            if "lora_" in name:
                stored = f"base_model.model.{name}".replace(".default.", ".")
                found[f"value_update.{stored}"] = (parameter - value_before[name]).detach()
    return found, saved


def main() -> None:
    ended, ragged = (1, 2, 3, 4, 5, 6, 0, 0), (1, 7, 2, 6, 3, 5, 4, 0) * 2
    quarters = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    twice = completions(*ragged)
    recorded = {
        "full": record(completions(*NEVER)),
        "ended": record(completions(*ended)),
        "epochs": record(completions(*NEVER), head_only=True, **EPOCHS),
        "critic": record(completions(*NEVER), adapter=True),
        "whitened": record(completions(*ended), whiten_rewards=True),
        "unstopped": record(completions(*ended, after=False), stop_token=None),
        "stopped": record(
            completions(*ended, end=STOP),
            stop_token=None,
            stop_token_id=STOP,
            missing_eos_penalty=1.0,
        ),
        "whole": record(twice),
        "pieces": record(twice, **quarters),
        "slots": record(twice, num_mini_batches=4, **quarters),
    }
    everything: dict[str, torch.Tensor] = {}
    for name, (found, _) in recorded.items():
        everything |= {f"{name}.{k}": v for k, v in found.items()}
    everything |= {f"base.{k}": v for k, v in base().state_dict().items()}
    for name, seed in (("policy", 21), ("ref", 22), ("value", 23), ("reward", 24)):
        state = get_peft_model_state_dict(adapted(seed))
        everything |= {f"{name}.{k}": v for k, v in state.items()}
    for name, seed in (("value", 23), ("reward", 24)):
        everything[f"{name}_head"] = scalar_model(seed).score.weight.detach()
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in everything.items()}
    about = {"trl": "1.12.0", "torch": torch.__version__, "saved": json.dumps(recorded["full"][1])}
    about["train"] = json.dumps(list(inspect.signature(PPOTrainer.train).parameters))
    save_file(tensors, FILE, metadata=about)
    print(f"{FILE}: {len(tensors)} tensors, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
