"""Direct preference optimization: TRL's DPOTrainer, the SFT adapter as its reference.

    python recipes/dpo.py --config recipes/configs/world/dpo.yaml \\
        --parent runs/world/sft --output_dir runs/world/dpo

Reads   preference rows (contracts: docs/data.md) and the SFT run.
Writes  the run's directory: the adapter, run.json, metrics.jsonl.
"""

import sys

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.data.loading import load_splits
from toolkit.options.arguments import StartArguments
from toolkit.options.command_line import run_cli
from toolkit.preflight.requirements import opening, require_test_split
from toolkit.runs.run import Run


def main(script, training, model, mixture, start) -> Run:
    configs = (script, training, model, mixture, start)
    resume = opening("dpo", configs)

    from transformers import set_seed

    from toolkit.data.checks import check_texts
    from toolkit.data.streaming import first_rows, open_stream
    from toolkit.models.adapters import save_adapter
    from toolkit.models.base import load_base
    from toolkit.models.fingerprint import fingerprint
    from toolkit.preflight.report import preflight
    from toolkit.trainers.callbacks import RunCallback
    from toolkit.trainers.interruption import interruptible
    from toolkit.trainers.load_policy import trainable_policy
    from toolkit.trainers.supervised import DPOTrainer

    parents = {"adapter": start.parent}
    with Run.start(
        training.output_dir, recipe="dpo", configs=configs, parents=parents, resume=resume
    ) as run:
        set_seed(training.seed)
        splits = load_splits(
            script, mixture, start, kind="preference", seed=training.seed, folder=run.path
        )
        require_test_split(training, splits)
        base, tokenizer = load_base(
            model, parent=start.parent, trust_remote_code=training.trust_remote_code
        )
        limit = training.max_length
        splits = check_texts(splits, tokenizer, start, max_length=limit, folder=run.path)
        rows, stream = splits["train"], None
        if script.dataset_streaming:
            stream = open_stream(script, mixture, start, splits, tokenizer, folder=run.path)
            rows = stream.table(seed=training.seed)
        run.base = fingerprint(model, tokenizer)
        trainer = DPOTrainer(  # which copies the adapter to "ref"
            trainable_policy(
                base,
                run.base,
                start.parent,
                gradient_checkpointing=training.gradient_checkpointing,
            ),
            args=training,
            processing_class=tokenizer,
            train_dataset=rows,
            eval_dataset=splits.get("test") if training.eval_strategy != "no" else None,
            callbacks=[RunCallback(run)],
        )
        trainer.base_fingerprint = run.base
        preflight(
            "dpo", configs, tokenizer, first_rows(trainer.train_dataset), trainer.data_collator
        )
        with interruptible(trainer):
            trainer.train(resume_from_checkpoint=resume)
        if stream is not None:
            print(stream.summary())
        save_adapter(trainer.model, run.path, run.base)
        tokenizer.save_pretrained(run.path)
        return run.finish(steps=trainer.state.global_step)


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, DPOConfig, ScriptArguments

    from toolkit.models.arguments import ModelArguments

    return ScriptArguments, DPOConfig, ModelArguments, DatasetMixtureConfig, StartArguments


if __name__ == "__main__":
    sys.exit(run_cli(main, arguments(), description=__doc__))
