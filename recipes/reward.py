"""Reward model: TRL's RewardTrainer with InstructGPT's ranking loss, started from the SFT adapter.

    python recipes/reward.py --config recipes/configs/world/reward.yaml \\
        --parent runs/world/sft --output_dir runs/world/reward

Reads   preference rows (contracts: toolkit/data/formats.py), the SFT run, demonstrations.
Writes  the run's directory: the adapter, head.safetensors (its bias makes the demonstrations
        score 0 on average), run.json, metrics.jsonl.
"""

import sys
from dataclasses import replace

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.arguments import DataArguments, RewardArguments
from toolkit.config import run_cli
from toolkit.data.loading import check_source, load_splits
from toolkit.runs import Run, last_checkpoint, require_adapter

MOST_DEMONSTRATIONS = 1000  # enough for a mean; a hub dataset may hold a million


def main(script, training, model, mixture, start) -> Run:
    if start.parent is not None:
        require_adapter(start.parent, "parent")
    check_source(script, mixture)
    if start.demonstrations is not None:
        check_source(replace(script, dataset_name=start.demonstrations), type(mixture)())
    resume = last_checkpoint(training.output_dir, training.resume_from_checkpoint)

    from transformers import set_seed

    from toolkit.models.arguments import refuse_adapter_options
    from toolkit.models.base import fingerprint, load_base
    from toolkit.trainers.callbacks import RunCallback
    from toolkit.trainers.checkpoints import interruptible
    from toolkit.trainers.ranking import RankingCollator, RankingTrainer, group_comparisons
    from toolkit.trainers.reward import export, scalar_adapter, score_texts, tokenize_pairs

    if start.parent is not None:
        refuse_adapter_options(model, because=f"the adapter is that of the parent {start.parent}")
    configs = (script, training, model, mixture, start)
    parents = {"adapter": start.parent}
    with Run.start(
        training.output_dir, recipe="reward", configs=configs, parents=parents, resume=resume
    ) as run:
        set_seed(training.seed)
        splits = load_splits(script, mixture, start, kind="preference", seed=training.seed)
        shown = _demonstrations(start, training.seed)
        base, tokenizer = load_base(
            model,
            scalar=True,
            parent=start.parent,
            trust_remote_code=training.trust_remote_code,
        )
        pairs = {
            name: group_comparisons(
                tokenize_pairs(rows, tokenizer, max_length=training.max_length, place=name)
            )
            for name, rows in splits.items()
        }
        run.base = fingerprint(model, tokenizer)
        trainer = RankingTrainer(
            scalar_adapter(base, run.base, parent=start.parent, model=model),
            training,
            processing_class=tokenizer,
            data_collator=RankingCollator(tokenizer.pad_token_id),
            train_dataset=pairs["train"],
            eval_dataset=pairs.get("test") if training.eval_strategy != "no" else None,
            callbacks=[RunCallback()],
        )
        trainer.base_fingerprint = run.base
        with interruptible(trainer):
            trainer.train(resume_from_checkpoint=resume)
        bias, results = 0.0, {}
        if shown:
            scores = score_texts(trainer.model, tokenizer, shown)
            bias = -scores.mean().item()
            results = {"demonstrations": len(shown), "score_std": round(scores.std().item(), 4)}
        export(trainer.model, run.path, run.base, bias=bias)
        tokenizer.save_pretrained(run.path)
        return run.finish(steps=trainer.state.global_step, bias=round(bias, 4), **results)


def _demonstrations(start, seed):
    """The (prompt, completion) rows whose scores shall average 0, read before the training."""
    if start.demonstrations is None:
        return []
    from trl import DatasetMixtureConfig, ScriptArguments

    source = ScriptArguments(dataset_name=start.demonstrations)
    # the training data's mixture would take precedence, and its format is another
    most = min(start.max_rows or MOST_DEMONSTRATIONS, MOST_DEMONSTRATIONS)
    asked = DataArguments(drop_bad_rows=start.drop_bad_rows, max_rows=most)
    rows = load_splits(source, DatasetMixtureConfig(), asked, kind="prompt-completion", seed=seed)
    return [(row["prompt"], row["completion"]) for row in rows["train"]]


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, RewardConfig, ScriptArguments

    from toolkit.models.arguments import ModelArguments

    return ScriptArguments, RewardConfig, ModelArguments, DatasetMixtureConfig, RewardArguments


if __name__ == "__main__":
    sys.exit(run_cli(main, arguments(), description=__doc__))
