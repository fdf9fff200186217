"""Supervised fine-tuning: teach the base to answer prompts, stored as one adapter.

    python recipes/sft.py --config recipes/configs/world/sft.yaml --output_dir runs/world/sft

Reads   prompt-completion, messages or text rows (contracts: docs/data.md).
Writes  the run's directory: the adapter, run.json, metrics.jsonl. Loss on the completion only.
"""

import sys

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.data.loading import load_splits
from toolkit.options.arguments import SFTArguments
from toolkit.options.command_line import run_cli
from toolkit.preflight.requirements import opening, require_test_split
from toolkit.runs.run import Run


def main(script, training, model, mixture, start) -> Run:
    configs = (script, training, model, mixture, start)
    resume = opening("sft", configs)

    from transformers import set_seed

    from toolkit.data.checks import check_texts
    from toolkit.data.streaming import first_rows, open_stream
    from toolkit.models.adapters import save_adapter
    from toolkit.models.base import load_base
    from toolkit.models.fingerprint import fingerprint
    from toolkit.models.peft_methods import build_peft_config
    from toolkit.preflight.report import preflight
    from toolkit.trainers.callbacks import RunCallback
    from toolkit.trainers.interruption import interruptible
    from toolkit.trainers.rank_allocation import RankAllocation
    from toolkit.trainers.supervised import SFTTrainer

    with Run.start(training.output_dir, recipe="sft", configs=configs, resume=resume) as run:
        set_seed(training.seed)  # before the split: TRL's get_dataset passes no seed of its own
        splits = load_splits(
            script,
            mixture,
            start,
            kind="prompt-completion",
            seed=training.seed,
            texts=True,
            turns=start.turns,
            folder=run.path,
        )
        require_test_split(training, splits)
        base, tokenizer = load_base(model, trust_remote_code=training.trust_remote_code)
        limit = None if training.packing else training.max_length
        splits = check_texts(splits, tokenizer, start, max_length=limit, folder=run.path)
        rows, stream = splits["train"], None
        if script.dataset_streaming:
            stream = open_stream(script, mixture, start, splits, tokenizer, folder=run.path)
            rows = stream.table(seed=training.seed)
        run.base = fingerprint(model, tokenizer)
        trainer = SFTTrainer(
            base,
            training,
            processing_class=tokenizer,
            peft_config=build_peft_config(
                model, base, gradient_checkpointing=training.gradient_checkpointing
            ),
            train_dataset=rows,
            eval_dataset=splits.get("test"),
            callbacks=[
                RunCallback(run),
                *([RankAllocation()] if model.method == "adalora" else []),
            ],
        )
        trainer.base_fingerprint = run.base
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        preflight(
            "sft", configs, tokenizer, first_rows(trainer.train_dataset), trainer.data_collator
        )
        with interruptible(trainer):
            trainer.train(resume_from_checkpoint=resume)
        if stream is not None:
            print(stream.summary())
        save_adapter(trainer.model, run.path, run.base)
        tokenizer.save_pretrained(run.path)
        return run.finish(steps=trainer.state.global_step, trainable_parameters=trained)


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments, SFTConfig

    from toolkit.models.arguments import ModelArguments

    return ScriptArguments, SFTConfig, ModelArguments, DatasetMixtureConfig, SFTArguments


if __name__ == "__main__":
    sys.exit(run_cli(main, arguments(), description=__doc__))
