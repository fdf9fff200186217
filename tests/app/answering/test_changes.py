"""The token numbers of an answer equal plain passes of freshly loaded models; the chat's messages."""

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.app.conftest import MakeRun
from tests.app.test_workbench import PROMPT, ids_of
from toolkit.app.answering.changes import scaled, text_diff
from toolkit.app.answering.chat import Chat
from toolkit.app.workbench import Workbench
from toolkit.errors import CheckpointError, ConfigError


def slow(base: str, run: Path, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `(L, V)` and last hidden states `(L, d)` of one sequence."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run)).eval()
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0].double().log_softmax(-1), out.hidden_states[-1][0]


def test_token_numbers_equal_a_plain_pass(
    workbench: Workbench, tiny_base: str, runs: Path, make_run: MakeRun
) -> None:
    make_run(runs / "ppo" / "value", "reward", seed=6)
    (runs / "ppo" / "value" / "run.json").unlink()  # a role inside its run is not a run
    workbench.refresh()
    ppo = ids_of(workbench)["ppo"]
    answer = next(workbench.compare(PROMPT, [ppo], temperature=1.0, max_new_tokens=9))
    changes = workbench.changes(ppo, PROMPT, answer.text, ids=answer.ids)
    prompt = workbench.tokens.prompt([{"role": "user", "content": PROMPT}])
    ids, start = [*prompt, *answer.ids], len(prompt) - 1
    policy, _ = slow(tiny_base, runs / "ppo", ids)
    reference, _ = slow(tiny_base, runs / "sft", ids)
    _, states = slow(tiny_base, runs / "ppo" / "value", ids)
    head = load_file(runs / "ppo" / "value" / "head.safetensors")
    values = states @ head["weight"][0] + head["bias"]

    assert (changes.name, changes.reference, changes.notes) == ("ppo", "sft", ())
    assert "".join(t.text for t in changes.tokens).startswith(answer.text.strip()[:1])
    for t, (token, i) in enumerate(zip(changes.tokens, answer.ids, strict=True)):
        policy_t, reference_t = policy[start + t], reference[start + t]
        assert token.logprob == pytest.approx(policy_t[i].item(), abs=1e-4)
        assert token.log_ratio == pytest.approx((policy_t[i] - reference_t[i]).item(), abs=1e-4)
        assert token.entropy == pytest.approx(-(policy_t.exp() * policy_t).sum().item(), abs=1e-4)
        assert token.value == pytest.approx(values[start + t].item(), abs=1e-4)
        for side, logprobs in ((token.policy, policy_t), (token.reference, reference_t)):
            top = logprobs.exp().sort(descending=True)
            probabilities = [a.probability for a in side]
            assert probabilities == pytest.approx(top.values[:5].tolist(), abs=1e-5)
            first = workbench.tokenizer.decode([int(top.indices[0])])
            assert side[0].text == first
    assert sum(t.log_ratio or 0 for t in changes.tokens) == pytest.approx(answer.kl, abs=1e-3)


def test_any_text_works_and_a_missing_value_is_noted(workbench: Workbench) -> None:
    sft = ids_of(workbench)["sft"]
    changes = workbench.changes(sft, PROMPT, "I do not know it.")
    assert "".join(t.text for t in changes.tokens) == "I do not know it.<|end|>"
    assert [t.log_ratio for t in changes.tokens] == [0.0] * len(changes.tokens)
    assert changes.numbers("value") == [None] * len(changes.tokens)
    assert "no values" in changes.notes[0]


def test_changes_rejects_invalid_input(workbench: Workbench) -> None:
    with pytest.raises(CheckpointError, match="unknown checkpoint"):
        workbench.changes("../../etc", PROMPT, "it")
    with pytest.raises(ConfigError, match="no answer to show"):
        workbench.changes("base", PROMPT, None)
    with pytest.raises(ConfigError, match="the context of the base is 128"):
        workbench.changes("base", PROMPT, "it " * 400)


def test_scaled_keeps_the_sign() -> None:
    assert scaled([0.5, -2.0, None]) == ([0.25, -1.0, None], 2.0)
    assert scaled([0.0, None]) == ([0.0, None], 0.0)
    assert scaled([]) == ([], 0.0)


def test_text_diff_marks_changed_words() -> None:
    parts = [("No, it", None), (" is", "-"), (" was not", "+"), (" red.", None)]
    assert text_diff("No, it is red.", "No, it was not red.") == (parts, False)


@given(st.text(max_size=60), st.text(max_size=60))
def test_text_diff_contains_both_texts(first: str, second: str) -> None:
    parts, _ = text_diff(first, second)
    assert "".join(text for text, kind in parts if kind != "+") == first
    assert "".join(text for text, kind in parts if kind != "-") == second


@pytest.mark.parametrize(
    ("first", "second", "cut"),
    [
        ("x " * 4000, "x y " * 2000, True),
        ("?" * 8000, " ".join("abc" * 1300), True),
        ("x" * 8000, "y" * 7999, False),
    ],
)
def test_work_of_text_diff_is_bounded(first: str, second: str, cut: bool) -> None:
    start = time.process_time()
    assert text_diff(first, second)[1] is cut
    assert time.process_time() - start < 3  # about 0.2 s; without a limit many minutes


def test_context_contains_only_the_checkpoints_own_answers(workbench: Workbench) -> None:
    ids = ids_of(workbench)
    chat = Chat(system="Be brief.").with_prompt("Hello")
    chat = chat.with_answers(list(workbench.compare("Hello", [ids["sft"], ids["dpo"]])))
    texts = {n: chat.turns[0].answers[ids[n]].text for n in ("sft", "dpo")}
    later = chat.with_prompt("And?")
    for name in ("sft", "dpo"):
        assert [m["content"] for m in later.conversation(ids[name])] == [
            "Be brief.",
            "Hello",
            texts[name],
            "And?",
        ]
    # a checkpoint that was chosen later has no earlier turns
    assert [m["content"] for m in later.conversation(ids["ppo"])] == ["Be brief.", "And?"]
    assert later.without_last().turns == chat.turns and later.last_prompt == "And?"
    assert chat.without_answers().conversation(ids["sft"])[-1]["content"] == "Hello"
