"""The models of a judge's run on one base: the runs that answer, and a judge without a server."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.app.judgements.judgement import BATTLE, Judgement
from toolkit.app.judgements.judgement import Reply as Answer
from toolkit.data.auxiliary import load_split
from toolkit.data.encoding import Prompt, encode_completion, encode_prompt
from toolkit.evaluation.held_out import held_out_prompts
from toolkit.evaluation.scoring import pad_id, summed_logprobs
from toolkit.judging.arguments import BASE, JudgeArguments
from toolkit.judging.items import Item
from toolkit.judging.questions import Question
from toolkit.judging.replies import REJECTED, Receive, Reply
from toolkit.models.arguments import reject_adapter_options
from toolkit.models.roles import Roles
from toolkit.models.tokenizer import stop_ids
from toolkit.runs.integrity import sha256
from toolkit.runs.parents import base_options, made_with
from toolkit.runs.run import WEIGHTS_FILE, Run
from toolkit.sampling.generation import check_sampling, complete
from toolkit.sampling.settings import Sampling
from toolkit.trainers.load_policy import load_roles

if TYPE_CHECKING:
    from toolkit.models.arguments import ModelArguments

SAMPLED = "sampled.jsonl"
JUDGE = "judge"  # the role


class Models:
    """One base with the adapters of the runs and of the judge."""

    def __init__(self, args: JudgeArguments, model: "ModelArguments") -> None:
        """Load the base; errors as of `load_roles`."""
        self.args = args
        self.runs = {Path(folder).name: Run(Path(folder), "") for folder in args.runs}
        judge = [args.judge_run] if args.judge_run not in (None, BASE) else []
        paths = [*args.runs, *map(str, judge)]
        reject_adapter_options(
            model, because="the adapters come from runs", made_with=list(map(made_with, paths))
        )
        parent = paths[0] if paths else None
        model = model if parent is None else model.with_base_of(base_options(parent))
        self.roles, self.tokenizer = load_roles(
            model, parent=parent, trust_remote_code=args.trust_remote_code
        )
        self.ids = {name: f"checkpoint_{number}" for number, name in enumerate(self.runs)}
        for name, run in self.runs.items():
            self.roles.attach(self.ids[name], run.path)
        if judge:
            self.roles.attach(JUDGE, judge[0])

    def judge(self) -> "LocalJudge":
        """The judge of `judge_run`."""
        run = str(self.args.judge_run)
        weights = "" if run == BASE else sha256(Path(run) / WEIGHTS_FILE)
        return LocalJudge(
            self.roles,
            self.tokenizer,
            role=None if run == BASE else JUDGE,
            name=str(self.roles.fingerprint.get("id", BASE)) if run == BASE else run,
            identity=json.dumps([self.roles.fingerprint, weights], sort_keys=True),
            batch_size=self.args.batch_size,
        )

    def items(self, folder: Path) -> list[Item]:
        """The runs' answers to the prompts. The folder keeps them: a later call judges the same ones."""
        rows = self._prompts()
        adapters = {name: sha256(run.path / WEIGHTS_FILE) for name, run in self.runs.items()}
        a = self.args
        settings = [adapters, self.roles.fingerprint, rows, a.seed, a.temperature]
        settings += [a.max_new_tokens, a.samples_per_prompt]
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        texts = _read(folder / SAMPLED, key)
        if texts is None:
            texts = {name: self._sample(name, rows) for name in self.runs}
            content = json.dumps({"settings": key, "prompts": rows, "texts": texts})
            (folder / SAMPLED).write_text(content + "\n", encoding="utf-8")
        return [self._item(n, prompt, texts, adapters) for n, prompt in enumerate(rows)]

    def _prompts(self) -> list[Prompt]:
        a = self.args
        if a.prompts is None:
            rows = held_out_prompts(
                [Run.load(run.path) for run in self.runs.values()], self.tokenizer
            )
        else:
            rows = load_split(
                a.prompts,
                a.prompts_split,
                option="prompts_split",
                drop_bad_rows=a.drop_bad_rows,
                seed=a.seed,
                tokenizer=self.tokenizer,
            )
        return [row["prompt"] for row in rows[: a.max_prompts]]

    def _sample(self, name: str, prompts: Sequence[Prompt]) -> list[list[str]]:
        """The answers of a run, a list for each prompt."""
        a, count = self.args, self.args.samples_per_prompt
        lengths = [len(encode_prompt(self.tokenizer, prompt)) for prompt in prompts]
        with self.roles.using(None):
            check_sampling(self.roles.base, lengths, a.max_new_tokens, fix="Lower `max_new_tokens`")
        torch.manual_seed(a.seed)
        with self.roles.merged(self.ids[name]) as sampler:
            answers = complete(
                sampler.eval(),
                self.tokenizer,
                [prompt for prompt in prompts for _ in range(count)],
                sampling=Sampling(a.max_new_tokens, a.temperature),
                stop=stop_ids(self.roles.base, self.tokenizer),
                batch_size=a.generation_batch_size,
            )
        texts = [answer.text for answer in answers]
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _item(
        self,
        number: int,
        prompt: Prompt,
        texts: Mapping[str, Sequence[Sequence[str]]],
        adapters: Mapping[str, str],
    ) -> Item:
        """The answers to one prompt; no recipe can learn an empty one, so they are left out."""
        plain = isinstance(prompt, str)
        messages = [{"role": "user", "content": prompt}] if plain else prompt
        answers = tuple(
            Answer(name, name, text, self.args.seed, adapters[name])
            for name, by_prompt in texts.items()
            for text in by_prompt[number]
            if text.strip()
        )
        sampling = {
            "temperature": self.args.temperature,
            "max_new_tokens": self.args.max_new_tokens,
        }
        origin = Judgement("", BATTLE, tuple(messages), (), sampling, dict(self.roles.fingerprint))  # type: ignore[arg-type]
        completions = tuple(
            a.text if plain else [{"role": "assistant", "content": a.text}] for a in answers
        )
        return Item(prompt, completions, answers, sampled=origin)


def _read(file: Path, key: str) -> dict[str, list[list[str]]] | None:
    """The answers in a file if they were sampled with the same settings."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return dict(stored["texts"]) if stored["settings"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class LocalJudge:
    """A judge on the base in memory: of the replies that the schema allows, the most probable one counts.

    It writes no reason, and no reply is malformed.
    """

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        *,
        role: str | None,
        name: str,
        identity: str,
        batch_size: int,
    ) -> None:
        self.roles, self.tokenizer, self.role = roles, tokenizer, role
        self.name, self.identity, self.batch_size = name, identity, batch_size

    def ask(self, questions: Sequence[Question], receive: Receive) -> None:
        """Pass each question with its reply to `receive`."""
        config = self.roles.base.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or float("inf")
        for question in questions:
            began = time.monotonic()
            prompt = [{"role": "user", "content": question.text}]
            ids = encode_prompt(self.tokenizer, prompt)
            options = question.form.replies
            pairs = [(ids, self._completion(prompt, reply)) for reply in options.values()]
            longest = max(len(ids) + len(completion) for _, completion in pairs)
            if longest > context:
                problem = f"{longest} tokens, but the context has {context}"
                receive(question, Reply().left_out(REJECTED, problem))
                continue
            scores: Sequence[Any] = summed_logprobs(
                self.roles,
                pairs,
                role=self.role,
                temperature=1.0,
                pad_id=pad_id(self.tokenizer),
                batch_size=self.batch_size,
            )
            choice = list(options)[max(range(len(scores)), key=scores.__getitem__)]
            seconds = round(time.monotonic() - began, 3)
            receive(question, Reply(choice, prompt_tokens=len(ids), seconds=seconds))

    def _completion(self, prompt: list[dict[str, str]], reply: str) -> list[int]:
        return encode_completion(self.tokenizer, prompt, [{"role": "assistant", "content": reply}])
