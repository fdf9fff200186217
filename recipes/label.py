"""Make comparisons for the embedded world: sample answers, and rank them with simulated labelers.

    toolkit label --config world/label \\
        --parent runs/world/sft --output_dir runs/world/comparisons

Reads   the world's prompts, the SFT run, and earlier comparisons if `earlier` names them.
Writes  train.jsonl and test.jsonl (preference rows with the gold utility of both answers), and
        run.json with the share of pairs on which two labelers agree.

For real data, people rank answers in the app.
"""

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError, DatasetError
from toolkit.options.arguments import LabelArguments
from toolkit.recipe import Command
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import base_options, made_with, require_adapter
from toolkit.runs.run import Run

if TYPE_CHECKING:
    from toolkit import ModelArguments

Rows = list[dict[str, Any]]


def main(labels: LabelArguments, model: "ModelArguments") -> Run:
    if labels.parent is None:
        raise ConfigError("label: `parent` is missing; name the SFT run: --parent runs/world/sft")
    require_separate(labels.output_dir, labels, model)
    require_adapter(labels.parent, "parent")
    earlier = {split: earlier_rows(labels.earlier, split) for split in ("train", "test")}

    from transformers import set_seed

    from toolkit.data.encoding import encode_prompt
    from toolkit.models.arguments import reject_adapter_options
    from toolkit.models.roles import POLICY
    from toolkit.models.tokenizer import stop_ids
    from toolkit.sampling.generation import check_sampling, complete
    from toolkit.sampling.settings import Sampling
    from toolkit.trainers.load_policy import load_roles
    from toolkit.world.answers import bad_answer
    from toolkit.world.datasets import preferences, user
    from toolkit.world.labelers import agreement, distinct_answers, panel, rank
    from toolkit.world.questions import Split, sample_questions

    reject_adapter_options(
        model,
        because=f"the adapter comes from the parent {labels.parent}",
        made_with=[made_with(labels.parent)],
    )
    model = model.with_base_of(base_options(labels.parent))
    parents = {"adapter": labels.parent}
    configs = (labels, model)
    with Run.start(labels.output_dir, recipe="label", configs=configs, parents=parents) as run:
        set_seed(labels.seed)
        roles, tokenizer = load_roles(
            model, parent=labels.parent, trust_remote_code=labels.trust_remote_code
        )
        run.base = roles.fingerprint
        roles.attach(POLICY, labels.parent)
        labelers = panel(labels.seed)
        results: dict[str, float] = {}
        sizes: dict[Split, int] = {"train": labels.train_prompts, "test": labels.test_prompts}
        for split, size in sizes.items():
            rng = random.Random(f"label-{labels.seed}-{split}")
            questions = sample_questions(rng, split, size)
            texts = [question.prompt for question in questions]
            lengths = [len(encode_prompt(tokenizer, user(text))) for text in texts]
            with roles.using(None):
                fix = "Lower `max_new_tokens`"
                check_sampling(roles.base, lengths, labels.max_new_tokens, fix=fix)
            groups = [[bad_answer(q, rng) for _ in range(labels.written_vices)] for q in questions]
            # the base gives bad answers that SFT no longer gives, and the reward model needs them
            for role, count in ((POLICY, labels.completions), (None, labels.base_completions)):
                with roles.merged(role) as sampler:
                    completions = complete(
                        sampler.eval(),
                        tokenizer,
                        [user(text) for text in texts for _ in range(count)],
                        sampling=Sampling(labels.max_new_tokens, labels.temperature),
                        stop=stop_ids(roles.base, tokenizer),
                    )
                for number, completion in enumerate(completions):
                    groups[number // count].append(completion.text)
            rows = []
            for number, (text, group) in enumerate(zip(texts, groups, strict=True)):
                answers = distinct_answers(group)
                ranks = rank(rng.choice(labelers), text, answers, rng)
                rows += preferences(text, answers, ranks, number)
            rows = add_groups(earlier[split], rows)
            rng.shuffle(rows)  # so that `max_rows` keeps rows of many prompts
            run.begin()
            with (run.path / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            results[f"{split}_pairs"] = len(rows)
            results[f"{split}_empty_answers_left_out"] = sum(
                not text.strip() for group in groups for text in group
            )
            sampled = [group[labels.written_vices :] for group in groups]
            results[f"{split}_agreement"] = round(
                agreement(labelers, texts, sampled, labels.seed), 4
            )
        return run.finish(**results)


def earlier_rows(folder: str | None, split: str) -> Rows:
    """The rows of earlier comparisons of this command; none without a folder."""
    from toolkit.data.files import read_rows
    from toolkit.data.sources import check_name

    if folder is None:
        return []
    check_name(folder, None)
    rows = read_rows(Path(folder) / f"{split}.jsonl")
    if not all(isinstance(row, dict) and isinstance(row.get("group_id"), int) for row in rows):
        raise DatasetError(
            f"{folder}: `earlier` must name comparisons of `toolkit label`, whose rows have a group_id"
        )
    return rows


def add_groups(earlier: Rows, rows: Rows) -> Rows:
    """Earlier rows and new ones, whose groups get other numbers."""
    first = max((row["group_id"] for row in earlier), default=-1) + 1
    return earlier + [row | {"group_id": row["group_id"] + first} for row in rows]


def arguments() -> tuple[type, ...]:
    from toolkit.models.arguments import ModelArguments

    return LabelArguments, ModelArguments


COMMAND = Command("label", __doc__, main, arguments, is_stage=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
