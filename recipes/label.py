"""Comparisons for the embedded world: sample answers, and let the panel rank them.

    toolkit label --config world/label \\
        --parent runs/world/sft --output_dir runs/world/comparisons

Reads   the world's prompts and the SFT run.
Writes  train.jsonl and test.jsonl: preference rows with the gold utility of both sides, and
        run.json with how often two labelers agree on sampled answers. With people this step is
        the app's.
"""

import json
import random
import sys

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.options.arguments import LabelArguments
from toolkit.recipe import Command
from toolkit.runs.parents import made_with, require_adapter
from toolkit.runs.run import Run


def main(labels, model) -> Run:
    if labels.parent is None:
        raise ConfigError("label: `parent` is missing; give the SFT run: --parent runs/world/sft")
    require_adapter(labels.parent, "parent")

    from transformers import set_seed

    from toolkit.models.arguments import reject_adapter_options
    from toolkit.models.roles import POLICY
    from toolkit.models.tokenizer import stop_ids
    from toolkit.sampling.generation import complete
    from toolkit.sampling.settings import Sampling
    from toolkit.trainers.load_policy import load_roles
    from toolkit.world.answers import bad_answer
    from toolkit.world.datasets import preferences, user
    from toolkit.world.labelers import agreement, distinct_answers, panel, rank
    from toolkit.world.questions import sample_questions

    reject_adapter_options(
        model,
        because=f"the adapter is that of the parent {labels.parent}",
        made_with=[made_with(labels.parent)],
    )
    parents = {"adapter": labels.parent}
    configs = (labels, model)
    with Run.start(labels.output_dir, recipe="label", configs=configs, parents=parents) as run:
        set_seed(labels.seed)
        roles, tokenizer = load_roles(
            model, parent=labels.parent, trust_remote_code=labels.trust_remote_code
        )
        run.base = roles.fingerprint
        roles.attach(POLICY, labels.parent)
        labelers, results = panel(labels.seed), {}
        for split, size in (("train", labels.train_prompts), ("test", labels.test_prompts)):
            rng = random.Random(f"label-{labels.seed}-{split}")
            drawn = sample_questions(rng, split, size)
            questions = [q.prompt for q in drawn]
            groups = [[bad_answer(q, rng) for _ in range(labels.written_vices)] for q in drawn]
            # the bare base has vices that SFT has not, and a reward model must have seen them
            sources = ((POLICY, labels.completions), (None, labels.base_completions))
            for role, count in sources:
                asked = [user(q) for q in questions for _ in range(count)]
                with roles.merged(role) as model_in_role:
                    said = complete(
                        model_in_role.eval(),
                        tokenizer,
                        asked,
                        sampling=Sampling(labels.max_new_tokens, labels.temperature),
                        stop=stop_ids(roles.base, tokenizer),
                    )
                for number, completion in enumerate(said):
                    groups[number // count].append(completion.text)
            rows = []
            for number, (question, group) in enumerate(zip(questions, groups, strict=True)):
                different = distinct_answers(group)
                ranks = rank(rng.choice(labelers), question, different, rng)
                rows += preferences(question, different, ranks, number)
            rng.shuffle(rows)  # the first rows shall be of all prompts; `group_id` finds them again
            run.begin()
            with (run.path / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            results[f"{split}_pairs"] = len(rows)
            results[f"{split}_empty_answers_left_out"] = sum(
                not text.strip() for group in groups for text in group
            )
            sampled = [group[labels.written_vices :] for group in groups]
            results[f"{split}_agreement"] = round(
                agreement(labelers, questions, sampled, labels.seed), 4
            )
        return run.finish(**results)


def arguments() -> tuple[type, ...]:
    from toolkit.models.arguments import ModelArguments

    return LabelArguments, ModelArguments


COMMAND = Command("label", __doc__, main, arguments, is_stage=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
