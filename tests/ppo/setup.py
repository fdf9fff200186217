"""A PPOTrainer on the tiny base, for the tests in this folder."""

from datasets import Dataset

from toolkit.ppo.config import PPOConfig
from toolkit.ppo.trainer import PPOTrainer
from toolkit.trainers.callbacks import RunCallback

PROMPTS = [
    "What is 1 plus 2?",
    "Hello.",
    "What colour is the Bramor bird?",
    "Goodbye for today.",
] * 4


def prompts():
    """Sixteen conversational prompts."""
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in PROMPTS]})


def make(
    roles,
    tokenizer,
    dataset,
    folder,
    *,
    reward_funcs=(),
    ptx_texts=(),
    held_out=None,
    eval_metrics=None,
    callbacks=(),
    **changes,
):
    """Two rollouts of eight episodes, eight steps in all, unless changed."""
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "total_episodes": 16,
        "response_length": 8,
        "temperature": 1.0,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "missing_eos_penalty": 1.0,
    }
    config = PPOConfig(**(settings | changes))
    return PPOTrainer(
        roles,
        config,
        processing_class=tokenizer,
        train_dataset=dataset,
        eval_dataset=held_out,
        reward_funcs=reward_funcs,
        ptx_texts=ptx_texts,
        eval_metrics=eval_metrics,
        callbacks=[*callbacks, RunCallback()],
    )
