"""Let a model judge answers, and write its verdicts as training data for reward, DPO and KTO.

    toolkit judge --dataset_name answers.jsonl --output_dir runs/judge \\
        --judge_url http://localhost:8000/v1 --judge_model Qwen/Qwen3-8B

Reads   rows with a prompt and two or more answers (docs/data.md), or --runs and prompts, or the
        answers in people's --votes. --judge_run names a judge on the same base, without a server.
Writes  train.jsonl (ranked answers; reward, dpo and kto read the folder), the same as preference.jsonl and
        unpaired.jsonl for TRL, the judge's replies, report.json and report.md.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.judging.arguments import BASE, JudgeArguments
from toolkit.recipe import Command
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import require_adapter
from toolkit.runs.run import Run

if TYPE_CHECKING:
    from toolkit import ModelArguments


def main(args: JudgeArguments, model: "ModelArguments") -> Run:
    require_separate(args.output_dir, args, model)
    for folder in args.runs:
        require_adapter(folder, "runs")
    if args.judge_run not in (None, BASE):
        require_adapter(str(args.judge_run), "judge_run")
    if len({Path(folder).name for folder in args.runs}) < len(args.runs):
        raise ConfigError("judge: `runs` must have different names; rename a folder")

    from toolkit.app.judgements.judged import write_judgements
    from toolkit.judging import items, output, report
    from toolkit.judging.endpoint import Endpoint
    from toolkit.judging.questions import Template
    from toolkit.judging.replies import ask_all
    from toolkit.judging.verdicts import judged, plan

    template = Template(args.mode, args.judge_prompt)
    endpoint = None if args.judge_url is None else Endpoint(args)
    began = time.monotonic()
    parents = {Path(folder).name: folder for folder in args.runs}
    configs = (args, model)
    with Run.start(args.output_dir, recipe="judge", configs=configs, parents=parents) as run:
        votes = items.read_votes(args.votes)
        if args.runs or endpoint is None:
            from toolkit.judging.models import Models  # loads torch

            models = Models(args, model)
            run.base = models.roles.fingerprint
        if args.runs:
            run.begin()
            rows = models.items(run.path)
        elif args.dataset_name is not None:
            rows = items.read_items(args)
        else:
            rows = items.items_of(votes, most=args.max_prompts)
        judge = models.judge() if endpoint is None else endpoint
        items.require_questions(rows)
        plans = [plan(item, template, args.mode) for item in rows]
        run.begin()  # the replies of an earlier call with the same questions stay
        questions = [question for one in plans for question in one.values()]
        replies, kept = ask_all(judge, questions, run.path)
        verdicts = [
            judged(item, asked, replies, args.mode) for item, asked in zip(rows, plans, strict=True)
        ]
        counts = output.write_data(verdicts, run.path, judge=judge.name)
        write_judgements(run.path, output.as_judgements(verdicts, judge=judge.name))
        numbers = report.build(verdicts, replies, people=report.people_votes(votes), seed=args.seed)
        numbers |= {"from_earlier_calls": kept, "seconds": round(time.monotonic() - began, 1)}
        print(output.write_report(numbers, run.path, judge=judge.name))
        return run.finish(judge=judge.name, rows=counts, **numbers)


def arguments() -> tuple[type, ...]:
    from toolkit.models.arguments import ModelArguments

    return JudgeArguments, ModelArguments


COMMAND = Command("judge", __doc__, main, arguments, is_stage=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
