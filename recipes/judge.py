"""Let a model judge answers, and write its verdicts as training data for reward, DPO and KTO.

    toolkit judge --dataset_name answers.jsonl --output_dir runs/judge \\
        --judge_url http://localhost:8000/v1 --judge_model Qwen/Qwen3-8B

Reads   rows with a prompt and two or more answers (docs/data.md), and the judge's instructions.
Writes  train.jsonl (ranked answers; reward, dpo and kto read the folder), the same as preference.jsonl and
        unpaired.jsonl for TRL, the judge's replies, report.json and report.md.
"""

import sys
import time

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.judging.arguments import JudgeArguments
from toolkit.recipe import Command
from toolkit.runs.inputs import require_separate
from toolkit.runs.run import Run


def main(args: JudgeArguments) -> Run:
    require_separate(args.output_dir, args)
    if args.judge_url is None:
        raise ConfigError("judge: `judge_url` is missing; name an OpenAI-compatible endpoint")
    if args.dataset_name is None and args.votes is None:
        raise ConfigError(
            "judge: `dataset_name` is missing; name a dataset with answers, or people's `votes`"
        )

    from toolkit.app.judgements.judged import write_judgements
    from toolkit.judging import items, output, report
    from toolkit.judging.endpoint import Endpoint
    from toolkit.judging.questions import Template
    from toolkit.judging.replies import ask_all
    from toolkit.judging.verdicts import judged, plan

    template, judge = Template(args.mode, args.judge_prompt), Endpoint(args)
    began = time.monotonic()
    with Run.start(args.output_dir, recipe="judge", configs=(args,)) as run:
        votes = items.read_votes(args.votes)
        own = items.read_items(args) if args.dataset_name else []
        rows = own or items.items_of(votes, most=args.max_prompts)
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
    return (JudgeArguments,)


COMMAND = Command("judge", __doc__, main, arguments, is_stage=True)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
