"""Answers and their numbers equal plain serial passes of freshly loaded models."""

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.app.conftest import MakeRun
from toolkit.app.answering import adapter_cache as module
from toolkit.app.workbench import Answer, Workbench
from toolkit.errors import CheckpointError, ConfigError
from toolkit.runs.run import Run

PROMPT = "What is it?"


def ids_of(workbench: Workbench) -> dict[str, str]:
    """name -> id, including reward runs."""
    catalog = workbench.catalog
    return {e.name: e.id for e in [*catalog.checkpoints.values(), *catalog.rewards.values()]}


def ask(workbench: Workbench, *names: str, **kwargs: Any) -> list[Answer]:
    """Answers to `PROMPT`; by default greedy, with 12 tokens."""
    ids = ids_of(workbench)
    settings = {"temperature": 0.0, "max_new_tokens": 12} | kwargs
    if "reward" in settings:
        settings["reward"] = ids[settings["reward"]]
    return list(workbench.compare(PROMPT, [ids[n] for n in names], **settings))


class Plain:
    """One checkpoint in its own model, loaded with transformers and peft alone."""

    def __init__(self, base: str, run: Path | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base)
        self.model = (PeftModel.from_pretrained(model, str(run)) if run else model).eval()
        message = [{"role": "user", "content": PROMPT}]
        text = self.tokenizer.apply_chat_template(
            message, add_generation_prompt=True, tokenize=False
        )
        self.prompt = self.tokenizer(text, return_tensors="pt")["input_ids"]

    @torch.no_grad()
    def answer(self) -> tuple[list[int], str]:
        """Up to 12 greedy tokens, with a full pass for each."""
        ids = self.prompt
        for _ in range(12):
            ids = torch.cat([ids, self.model(ids).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == self.tokenizer.eos_token_id:
                break
        answer_ids = ids[0, self.prompt.shape[1] :].tolist()
        return answer_ids, self.tokenizer.decode(answer_ids, skip_special_tokens=True)

    @torch.no_grad()
    def sampled(self, temperature: float, seed: int) -> list[int]:
        """Up to 12 tokens; each is looked up by a random number in the cumulative probabilities."""
        generator, ids = torch.Generator().manual_seed(seed), self.prompt
        for _ in range(12):
            logits = self.model(ids).logits[0, -1]
            cumulative = (logits / temperature).softmax(-1).double().cumsum(-1)
            number = torch.rand(1, generator=generator, dtype=torch.float64)
            token = int((cumulative <= number * cumulative[-1]).sum())
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            if token == self.model.config.eos_token_id:
                break
        return ids[0, self.prompt.shape[1] :].tolist()

    @torch.no_grad()
    def logprob(self, answer_ids: list[int], temperature: float) -> float:
        """log π of an answer at a temperature."""
        ids = torch.cat([self.prompt, torch.tensor([answer_ids])], dim=1)
        logp = torch.log_softmax(self.model(ids).logits[0].double() / temperature, -1)
        start = self.prompt.shape[1]
        return sum(logp[start - 1 + t, token].item() for t, token in enumerate(answer_ids))


def test_answers_equal_plain_serial_generation(
    workbench: Workbench, tiny_base: str, runs: Path
) -> None:
    names = ("base", "sft", "dpo", "ppo")
    for answer in ask(workbench, *names):
        run = None if answer.name == "base" else runs / answer.name
        answer_ids, text = Plain(tiny_base, run).answer()
        assert answer.problem is None
        assert (answer.text, answer.tokens) == (text, len(answer_ids))
        assert answer.ended == (answer_ids[-1] == workbench.tokenizer.eos_token_id)
    assert len({a.text for a in ask(workbench, *names)}) == 4


def test_score_is_the_head_at_the_last_token(
    workbench: Workbench, tiny_base: str, runs: Path
) -> None:
    answer = ask(workbench, "ppo", reward="reward")[0]
    answer_ids, _ = Plain(tiny_base, runs / "ppo").answer()
    scorer = Plain(tiny_base, runs / "reward")
    ids = torch.cat([scorer.prompt, torch.tensor([answer_ids])], dim=1)
    with torch.no_grad():
        hidden = scorer.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    head = load_file(runs / "reward" / "head.safetensors")
    expected = (hidden @ head["weight"][0] + head["bias"][0]).item()
    assert answer.score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("temperature", "kl_temperature"), [(0.0, 1.0), (0.5, 0.5)])
def test_kl_uses_sft_and_the_sampling_temperature(
    workbench: Workbench, tiny_base: str, runs: Path, temperature: float, kl_temperature: float
) -> None:
    sft = Plain(tiny_base, runs / "sft")
    for answer in ask(workbench, "base", "ppo", temperature=temperature):
        assert answer.reference == "sft"
        run = None if answer.name == "base" else runs / answer.name
        plain = Plain(tiny_base, run)
        answer_ids = plain.sampled(temperature, seed=0) if temperature else plain.answer()[0]
        assert answer.tokens == len(answer_ids)
        expected = plain.logprob(answer_ids, kl_temperature) - sft.logprob(
            answer_ids, kl_temperature
        )
        assert answer.kl == pytest.approx(expected, abs=1e-3)
        assert abs(expected) > 0.1


def test_kl_of_the_reference_is_zero(workbench: Workbench) -> None:
    ask(workbench, "ppo", "dpo")  # load other adapters first
    assert ask(workbench, "sft", temperature=1.0)[0].kl == 0.0


def test_same_seed_repeats_the_answer(workbench: Workbench) -> None:
    first, second = ask(workbench, "sft", "dpo", temperature=1.0, seed=7)
    assert ask(workbench, "dpo", temperature=1.0, seed=7) == [second]
    assert ask(workbench, "sft", temperature=1.0, seed=7) == [first]
    assert ask(workbench, "sft", temperature=1.0, seed=8)[0].text != first.text


def test_sampling_keeps_the_global_random_state(workbench: Workbench) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    ask(workbench, "base", "sft", temperature=1.0, seed=11)
    assert torch.equal(torch.rand(4), expected)


def test_other_adapters_do_not_change_an_answer(
    workbench: Workbench, tiny_base: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ask(Workbench.open(tiny_base, runs), "dpo", reward="reward")
    ask(workbench, "ppo", "sft", "base")
    assert ask(workbench, "dpo", reward="reward") == alone
    monkeypatch.setattr(module, "MAX_ADAPTERS", 1)  # every load drops the others
    for _ in range(2):
        assert ask(workbench, "ppo", "dpo", "base", reward="reward")[1] == alone[0]


def test_retrained_run_is_loaded_again(workbench: Workbench, tiny_base: str, runs: Path) -> None:
    before = ask(workbench, "dpo")[0]
    file = runs / "dpo" / "adapter_model.safetensors"
    save_file({k: -v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    Run.load(runs / "dpo").finish()
    after = ask(workbench, "dpo")[0]
    # A and B both changed sign: the same delta
    assert after.text == before.text
    weights = load_file(file)
    save_file({k: -v if "lora_B" in k else v for k, v in weights.items()}, file)
    Run.load(runs / "dpo").finish()
    assert ask(workbench, "dpo")[0].text == Plain(tiny_base, runs / "dpo").answer()[1]
    assert ask(workbench, "dpo")[0].text != before.text


def test_unloadable_checkpoint_does_not_affect_others(workbench: Workbench, runs: Path) -> None:
    alone = ask(workbench, "ppo")[0]
    file = runs / "dpo" / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).fill_(math.nan)
    save_file(weights, file)
    broken, ppo = ask(workbench, "dpo", "ppo")
    assert broken.problem is not None and "not finite" in broken.problem
    assert str(runs) not in broken.problem
    assert ppo == alone
    workbench.refresh()
    assert "dpo" not in ids_of(workbench)
    assert any(n == "dpo" and "not finite" in why for n, why in workbench.catalog.broken)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_overflowing_checkpoint_does_not_affect_others(
    workbench: Workbench, runs: Path, temperature: float
) -> None:
    alone = ask(workbench, "ppo", temperature=temperature)[0]
    file = runs / "dpo" / "adapter_model.safetensors"
    save_file({k: v * 1e25 for k, v in load_file(file).items()}, file)  # finite, but too large
    Run.load(runs / "dpo").finish()
    broken, ppo = ask(workbench, "dpo", "ppo", temperature=temperature)
    assert broken.problem is not None and "logits are not finite" in broken.problem
    assert (ppo.text, ppo.problem) == (alone.text, None)


def test_missing_reward_head_gives_answers_without_score(workbench: Workbench, runs: Path) -> None:
    (runs / "reward" / "head.safetensors").unlink()
    answer = ask(workbench, "sft", reward="reward")[0]
    assert answer.text and answer.score is None and answer.kl == 0.0
    assert "no score" in answer.notes[0]


@pytest.mark.slow
def test_two_threads_get_the_answers_of_one(workbench: Workbench) -> None:
    names = [("sft", "dpo"), ("ppo", "base")]
    expected = [ask(workbench, *n, reward="reward", temperature=1.0) for n in names]
    answers: list[list[Answer]] = [[], []]

    def work(i: int) -> None:
        for _ in range(3):
            answers[i] += ask(workbench, *names[i], reward="reward", temperature=1.0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected[0] * 3, expected[1] * 3]


@pytest.mark.parametrize("bad", ["../../etc", "run_999999", "sft", "", 3, None, ["base"]])
def test_unknown_ids_are_rejected(workbench: Workbench, bad: object) -> None:
    with pytest.raises(CheckpointError, match="unknown checkpoint"):
        workbench.compare(PROMPT, ["base", bad])
    if bad not in ("", None):
        with pytest.raises(CheckpointError, match="unknown checkpoint"):
            workbench.compare(PROMPT, ["base"], reward=bad)


def test_recent_scan_is_reused(workbench: Workbench, make_run: MakeRun) -> None:
    make_run(workbench.runs / "later", "dpo", seed=9)
    before = workbench.catalog
    assert workbench.refresh(max_age_s=3600) is before
    after = workbench.refresh()
    assert "later" in {e.name for e in after.checkpoints.values()}
    assert workbench.refresh(max_age_s=3600) is after


def test_reward_run_does_not_answer(workbench: Workbench) -> None:
    with pytest.raises(CheckpointError, match="unknown checkpoint"):
        ask(workbench, "reward")


def test_invalid_numbers_become_defaults(workbench: Workbench) -> None:
    answer = ask(workbench, "base", temperature=math.nan, max_new_tokens=math.nan, seed="x")[0]
    assert answer.problem is None and answer.tokens >= 1


def test_answer_stays_within_the_context(workbench: Workbench) -> None:
    long = "it " * 40
    length = len(workbench.tokenizer(long)["input_ids"]) + 3  # <|user|> <|end|> <|assistant|>
    answer = next(workbench.compare(long, ["base"], max_new_tokens=512))
    assert answer.tokens <= 128 - length
    with pytest.raises(ConfigError, match=r"tokens; the context of the base is 128"):
        workbench.compare("it " * 200, ["base"])


def test_context_use_counts_the_longest_conversation(workbench: Workbench) -> None:
    def use(*prompts: str) -> str:
        messages = {str(n): [{"role": "user", "content": p}] for n, p in enumerate(prompts)}
        return workbench.context_use(messages, 64)

    length = len(workbench.tokens.prompt([{"role": "user", "content": "it " * 9}]))
    assert use("it", "it " * 9) == f"{length} of 128 tokens"
    length = len(workbench.tokens.prompt([{"role": "user", "content": "it " * 90}]))
    assert use("it " * 90) == f"{length} of 128 tokens; room for {128 - length} of 64 new tokens"
    with pytest.raises(ConfigError, match=r"the context of the base is 128: shorten the prompt"):
        use("it " * 200)
    with pytest.raises(ConfigError, match=r"9000 characters, at most 8000 are allowed; shorten it"):
        use("x" * 9000)


def test_text_that_cannot_be_encoded_is_replaced(workbench: Workbench) -> None:
    assert next(workbench.compare("half a pair: \ud800", ["base"])).problem is None
