"""The rows that a trainer makes of its dataset, without a model."""

from toolkit.trainers.supervised import SFTTrainer


def prepared(
    trainer, config, rows, tokenizer, folder, *, assistant_only_loss=False, **attributes
) -> dict:
    """The first row, tokenized; `attributes` are those that the trainer's start would set."""
    unstarted = object.__new__(trainer)
    vars(unstarted).update(attributes, _tokenizer=tokenizer, chat_template=None)
    options = {"assistant_only_loss": True} if assistant_only_loss else {}
    args = config(
        output_dir=str(folder), max_length=200, use_cpu=True, bf16=False, report_to=[], **options
    )
    more = (False, None, "train") if trainer is SFTTrainer else ("train",)
    return next(iter(unstarted._prepare_dataset(rows, tokenizer, args, *more)))
