"""The training function that every training recipe shares."""

from typing import Any

from transformers import set_seed

from toolkit.data.streaming import first_rows
from toolkit.models.adapters import save_adapter
from toolkit.preflight.report import print_report
from toolkit.preflight.requirements import check_requirements
from toolkit.preflight.rows import check_rows_of
from toolkit.recipe import Options, Recipe
from toolkit.runs.resuming import is_requested
from toolkit.runs.run import ENSEMBLE, Run
from toolkit.trainers.callbacks import interruptible
from toolkit.training import Training


def train(recipe: Recipe, *configs: Any) -> Run:
    """Run a recipe: check, load, build, report, train and save; record the run.

    Args:
        recipe: the recipe to train.
        configs: its parsed options, in the order of `Options`.

    Returns: the finished run.
    Raises: ToolkitError for options, data or adapters that cannot be used; then the run is marked failed.
    """
    options, resume = check_requirements(recipe, Options(*configs))
    args, own = options.args, options.own
    is_ensemble = getattr(own, "ensemble", 1) > 1
    if is_ensemble and is_requested(args.resume_from_checkpoint):
        resume = args.output_dir  # the finished members stay
    with Run.start(
        args.output_dir,
        recipe=ENSEMBLE if is_ensemble else recipe.name,
        configs=options,
        parents=_parents(options),
        resume=resume,
    ) as run:
        set_seed(args.seed)  # before the split: TRL's get_dataset passes no seed of its own
        training = Training(recipe, options, run=run, resume=resume)
        return run.finish(**(recipe.fit or fit)(training))


def fit(training: Training) -> dict[str, Any]:
    """Build the recipe's trainer, train, and save the result.

    Returns: results for run.json.
    """
    recipe = training.recipe
    rows = training.splits["train"]  # read and check the data before the base is loaded
    trainer = recipe.build(training)
    trainer.base_fingerprint = training.fingerprint
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    print_report(
        recipe,
        training.options,
        training.tokenizer,
        first_rows(trainer.train_dataset, len(rows)),
        trainer.data_collator,
    )
    check_rows_of(trainer, training.options)
    with interruptible(trainer):
        trainer.train(resume_from_checkpoint=training.resume)
    if training.stream is not None:
        print(training.stream.summary())
    results = (recipe.save or save_policy)(training, trainer)
    return {"steps": trainer.state.global_step, "trainable_parameters": parameters} | results


def save_policy(training: Training, trainer: Any) -> dict[str, Any]:
    """Write the trained adapter and the tokenizer into the run directory."""
    save_adapter(trainer.model, training.run.path, training.fingerprint)
    training.tokenizer.save_pretrained(training.run.path)
    return {}


def _parents(options: Options) -> dict[str, str | None]:
    """The runs that a run starts from, by purpose."""
    return {"adapter": options.parent} | {
        f"reward_{i}" if i else "reward": run for i, run in enumerate(options.rewards)
    }
