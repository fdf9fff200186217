"""The evaluation of a tiny random model, and each number against a slow loop without batches."""

import math

import pytest
import torch

from tests.evaluation.conftest import corpus
from tests.scores import score_rows
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.errors import CheckpointError, ConfigError, DatasetError, RewardError
from toolkit.evaluation.answers import with_demonstrations
from toolkit.evaluation.evaluate import MAIN, Checkpoint, evaluate_all, other_samplings
from toolkit.evaluation.gold import world_prompts
from toolkit.evaluation.judge import judge_reward_model
from toolkit.evaluation.render import write
from toolkit.evaluation.report import build, examples
from toolkit.evaluation.scoring import lm_loss
from toolkit.models.heads import ScalarHead
from toolkit.sampling.settings import Sampling
from toolkit.world.datasets import load, user

SHORT = Sampling(max_new_tokens=8, temperature=0.7)
CHECKPOINTS = {
    "base": Checkpoint(None, "base"),
    "sft": Checkpoint("sft", "sft"),
    "twin": Checkpoint("twin", "sft"),
    "other": Checkpoint("other", "ppo"),
}
SHOTS = [("What is 1 plus 1?", "It is 2."), ("Hello.", "Hello to you.")]


@pytest.fixture(scope="module")
def prompts():
    return [row["prompt"] for row in load("prompts")["test"][:12]]


@pytest.fixture(scope="module")
def evaluation(roles, tokenizer, prompts):
    texts = [d for d in corpus(40) if isinstance(d, str)][:6]
    return evaluate_all(
        roles,
        tokenizer,
        CHECKPOINTS,
        prompts,
        sampling=SHORT,
        few_shot=SHOTS,
        texts=texts,
        batch_size=5,
    )


def slow_logprob(model, prompt, completion, temperature):
    """One row, the whole vocabulary, token by token."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double() / temperature
    at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return sum(
        torch.log_softmax(logits[i], -1)[t].item() for i, t in zip(at, completion, strict=True)
    )


def test_equal_checkpoints_tie_exactly(evaluation, roles, tokenizer, prompts, tmp_path):
    rows = load("comparisons")["test"][:30]
    shown = [(row["prompt"], row["completion"]) for row in load("demonstrations")["test"][:5]]
    section = judge_reward_model(roles, tokenizer, rows, demonstrations=shown)
    report = build(evaluation, reward_model=section, timings_s={"evaluate": 1.0})
    even = {"mean": 0.5, "ci95": [0.5, 0.5]}
    for name in ("sft", "twin"):
        entry = report["checkpoints"][name]
        assert entry["win_rate_vs_sft"] == {"gold": even, "proxy": even}
        assert entry["kl_to_sft"] == 0.0
        assert {k: o["win_rate_vs_sft"]["gold"] for k, o in entry["other_sampling"].items()} == {
            "1.0": even,
            "0": even,
        }
    assert report["checkpoints"]["twin"] == report["checkpoints"]["sft"]
    assert report["checkpoints"]["other"]["kl_to_sft"] != 0.0
    assert report["checkpoints"]["other"]["win_rate_vs_sft"]["proxy"] != even
    page = write(tmp_path / "r", report, examples=examples(evaluation, 3)).read_text()
    assert page.count("score ") >= 3 * len(CHECKPOINTS)


@pytest.mark.slow
def test_same_seed_gives_same_answers_and_restores_state(evaluation, roles, tokenizer, prompts):
    roles.model.train()
    active, state = list(roles.model.active_adapters), torch.random.get_rng_state()
    again = evaluate_all(
        roles, tokenizer, CHECKPOINTS, prompts, sampling=SHORT, few_shot=SHOTS, batch_size=5
    )
    for name in CHECKPOINTS:
        first, second = (e.checkpoints[name].answers for e in (evaluation, again))
        assert [c.ids for c in first[MAIN].completions] == [c.ids for c in second[MAIN].completions]
        assert first[MAIN].proxy == second[MAIN].proxy
    assert again.checkpoints["sft"].lm_loss is None
    assert all(m.training for m in roles.model.modules())
    assert list(roles.model.active_adapters) == active
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["base", "other"])
def test_kl_matches_slow_loop(evaluation, roles, tokenizer, prompts, name):
    measured = evaluation.checkpoints[name]
    role = CHECKPOINTS[name].role
    roles.model.eval()
    for row in (0, 5, 11):
        ids = measured.answers[MAIN].completions[row].ids
        plain = encode_prompt(tokenizer, prompts[row])
        own = plain if role else encode_prompt(tokenizer, with_demonstrations(prompts[row], SHOTS))
        with torch.no_grad(), roles.using(role) as model:
            ours = slow_logprob(model, own, ids, 0.7)
        with torch.no_grad(), roles.using("sft") as model:
            theirs = slow_logprob(model, plain, ids, 0.7)
        assert measured.kl_to_sft[row] == pytest.approx(ours - theirs, abs=1e-3)


def test_lm_loss_matches_slow_loop(roles, tokenizer):
    texts = [d for d in corpus(40) if isinstance(d, str)][:4]
    loss = lm_loss(roles, tokenizer, texts, role="other", batch_size=3)
    total = tokens = 0.0
    roles.model.eval()
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad(), roles.using("other") as model:
            total += slow_logprob(model, [tokenizer.bos_token_id], ids, 1.0)
        tokens += len(ids)
    assert loss == pytest.approx(-total / tokens, abs=1e-4)
    assert lm_loss(roles, tokenizer, [], role=None) is None
    assert lm_loss(roles, tokenizer, [""], role=None) is None


def test_scores_match_one_row_at_a_time(evaluation, roles, tokenizer, prompts):
    answers = evaluation.checkpoints["base"].answers[MAIN]
    roles.model.eval()
    for row in (0, 7):
        ids = encode_prompt(tokenizer, prompts[row]) + answers.completions[row].ids  # no few-shot
        with torch.no_grad(), roles.using("reward") as model:
            hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            score = roles.heads["reward"](hidden.hidden_states[-1][0, -1]).item()
        assert answers.proxy[row] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("name", ["base", "other"])
def test_base_perplexity_matches_slow_loop(evaluation, roles, tokenizer, prompts, name):
    answers = evaluation.checkpoints[name].answers[MAIN].completions
    roles.model.eval()
    with torch.no_grad(), roles.using(None) as model:
        sums = [
            slow_logprob(model, encode_prompt(tokenizer, prompt), c.ids, 1.0)
            for prompt, c in zip(prompts, answers, strict=True)
        ]
    expected = math.exp(-sum(sums) / sum(len(c.ids) for c in answers))
    assert evaluation.checkpoints[name].base_perplexity == pytest.approx(expected, rel=1e-3)


def test_reward_functions_are_added_to_the_score(evaluation, roles, tokenizer, prompts):
    def has_length(prompts, completions, completion_ids, label, **_):
        assert all(isinstance(c[0]["content"], str) for c in completions)
        return [x + len(ids) for ids, x in zip(completion_ids, label, strict=True)]

    columns = {"label": list(range(len(prompts)))}
    rewards = dict(reward_funcs=[has_length], columns=columns)
    both = evaluate_one(roles, tokenizer, prompts, rewards=["reward"], **rewards)
    alone = evaluate_one(roles, tokenizer, prompts, rewards=[], **rewards)
    model = evaluate_one(roles, tokenizer, prompts, rewards=["reward"])
    both, alone, model = (e.checkpoints["sft"].answers[MAIN] for e in (both, alone, model))
    lengths = [i + len(c.ids) for i, c in enumerate(alone.completions)]
    assert alone.proxy == lengths
    expected = [a + b for a, b in zip(model.proxy, lengths, strict=True)]
    assert both.proxy == pytest.approx(expected, abs=1e-6)
    gain = build(evaluation)["checkpoints"]["other"]["gain_vs_sft"]["proxy"]
    ours, theirs = (evaluation.checkpoints[n].answers[MAIN].proxy for n in ("other", "sft"))
    difference = (sum(ours) - sum(theirs)) / len(ours)
    assert gain["mean"] == pytest.approx(difference, abs=1e-3)


def test_best_of_n_has_the_best_score_of_n_answers(roles, tokenizer, prompts):
    def entry(best_of, **options):
        evaluation = evaluate_all(
            roles,
            tokenizer,
            {"sft": CHECKPOINTS["sft"]},
            prompts[:3],
            sampling=Sampling(6, 1.0),
            others={},
            best_of=best_of,
            **options,
        )
        return evaluation, {n: evaluation.checkpoints[f"best_of_{n}"] for n in best_of}

    evaluation, measured = entry([1, 4])
    one, four = (measured[n].answers[MAIN] for n in (1, 4))
    assert all(a <= b for a, b in zip(one.proxy, four.proxy, strict=True))
    assert sum(one.proxy) < sum(four.proxy)
    report = build(evaluation)["checkpoints"]["best_of_4"]
    assert (report["kl_to_sft"], report["lm_loss"]) == (0.636294, None)  # log 4 - 3/4
    with pytest.raises(ConfigError, match="`best_of` needs a score"):
        entry([4], rewards=[])


def test_completion_without_any_reward_stops_the_evaluation(roles, tokenizer, prompts):
    with pytest.raises(RewardError, match="have no reward"):
        evaluate_one(
            roles,
            tokenizer,
            prompts,
            rewards=[],
            reward_funcs=[lambda prompts, **_: [None] * len(prompts)],
        )


def test_without_world_or_reward_model_values_are_none(roles, tokenizer):
    evaluation = evaluate_all(
        roles,
        tokenizer,
        {name: CHECKPOINTS[name] for name in ("base", "sft")},
        ["Once upon a time", "What is 1 plus 1?"],
        sampling=Sampling(4, 0.0),
        rewards=(),
        few_shot=SHOTS,
    )
    report = build(evaluation)
    sft = report["checkpoints"]["sft"]
    assert (sft["gold"], sft["proxy"], sft["rates"], sft["kl_to_sft"]) == (None,) * 4
    assert sft["win_rate_vs_sft"] == {"gold": None, "proxy": None}
    assert sft["other_sampling"] == {}
    assert [e["prompt"] for e in examples(evaluation)] == ["Once upon a time", "What is 1 plus 1?"]


def test_invalid_input_raises_named_error(roles, tokenizer, prompts):
    with pytest.raises(ConfigError, match="no checkpoint has this name; use one of other"):
        evaluate_all(roles, tokenizer, {"other": CHECKPOINTS["other"]}, prompts)
    with pytest.raises(DatasetError, match="no prompts"):
        evaluate_all(roles, tokenizer, CHECKPOINTS, [])
    room = roles.base.config.max_position_embeddings
    with pytest.raises(
        ConfigError, match=rf"room for `max_new_tokens` {room} in .* Leave them out"
    ):
        evaluate_all(roles, tokenizer, CHECKPOINTS, prompts, sampling=Sampling(room))
    left = room - max(len(encode_prompt(tokenizer, p)) for p in prompts)
    with pytest.raises(ConfigError, match=rf"`max_new_tokens` {left} in .* Lower `few_shot`"):
        evaluate_all(
            roles, tokenizer, CHECKPOINTS, prompts, sampling=Sampling(left), few_shot=SHOTS
        )
    with pytest.raises(CheckpointError, match="role 'other' has no head"):
        score_rows(roles, tokenizer, [("a", "b")], reward="other")
    with pytest.raises(DatasetError, match="got 0 rows"):
        judge_reward_model(roles, tokenizer, [])
    with pytest.raises(DatasetError, match='row 1 of 1: "rejected" is missing'):
        judge_reward_model(roles, tokenizer, [{"prompt": "a", "chosen": "b"}])


def test_reward_model_section_matches_hand_count(roles, tokenizer, monkeypatch):
    """Three answers a > b > c by label; the score orders them a > c > b, gold b > a > c."""
    texts = {"a": "Yes.", "b": "Yes. It is so.", "c": "No. I do not think that it is so."}
    score = {"a": 3.0, "b": 1.0, "c": 2.0}
    gold = {"a": 0.5, "b": 1.0, "c": -1.0}
    by_ids = {
        tuple(encode_completion(tokenizer, "Is it?", texts[k])): value for k, value in score.items()
    }
    passes = []

    def fake(roles, pairs, **_):
        passes.append(len(pairs))
        return [by_ids[tuple(completion)] for _, completion in pairs]

    monkeypatch.setattr("toolkit.evaluation.judge.score_ids", fake)
    rows = [
        {
            "prompt": "Is it?",
            "chosen": texts[w],
            "rejected": texts[x],
            "chosen_gold": gold[w],
            "rejected_gold": gold[x],
            "group_id": 1,
        }
        for w, x in ("ab", "ac", "bc")
    ]
    section = judge_reward_model(
        roles,
        tokenizer,
        rows,
        demonstrations=[("Is it?", texts["a"]), ("Is it?", texts["b"])],
        labeler_agreement=0.75,
    )
    assert passes == [3, 2]  # three answers in three pairs, then the demonstrations
    assert section["pairwise_accuracy"] == 0.666667  # a > b and a > c, not b > c
    assert section["pairwise_accuracy_ci95"] == [0.666667, 0.666667]  # one prompt, one group
    assert section["clear_gold_accuracy"] == 0.5  # a over c agrees, b over c does not, a-b is close
    assert section["ceiling"] == 0.666667  # gold has a > c and b > c
    assert section["demonstration_mean"] == 2.0
    assert section["labeler_agreement"] == 0.75
    assert section["length_accuracy"] == 0.0  # always the shorter one
    bare = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]
    without = judge_reward_model(roles, tokenizer, bare)
    assert (without["ceiling"], without["clear_gold_accuracy"]) == (None, None)


def test_ensemble_section_uses_mean_score(roles, tokenizer, prompts, tmp_path):
    """Three members score the two sides of three pairs; the means are 2 > 1, 0 < 3 and 4 > 2."""
    table = {"m0": [3, 0, 0, 6, 4, 1], "m1": [3, 3, 0, 0, 8, 2], "m2": [0, 0, 0, 3, 0, 3]}
    answers = ["Yes.", "No.", "It is.", "It is not.", "I do not know.", "Hello."]
    rows = [
        {"prompt": f"Is it {i}?", "chosen": answers[2 * i], "rejected": answers[2 * i + 1]}
        for i in range(3)
    ]
    where = {tuple(encode_completion(tokenizer, "Is it?", s)): i for i, s in enumerate(answers)}

    def fake(roles, pairs, *, reward, **_):
        return [float(table[reward][where[tuple(completion)]]) for _, completion in pairs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.evaluation.judge.score_ids", fake)
        section = judge_reward_model(
            roles,
            tokenizer,
            rows,
            demonstrations=[("Is it 1?", answers[3]), ("Is it 2?", answers[4])],
            rewards=list(table),
        )
    assert section["pairwise_accuracy"] == 0.666667
    assert section["demonstration_mean"] == 3.5  # of 3 and 4
    assert section["members"] == 3
    # m0: > < >; m1: tie, tie, >; m2: tie, <, <
    assert section["members_accuracy"] == [0.666667, 0.666667, 0.166667]
    # the signs + - +, 0 0 +, 0 - -: alike in 1, 1 and 1 of 3
    assert section["members_agreement"] == 0.333333
    report = build(evaluate_one(roles, tokenizer, prompts), reward_model=section)
    page = write(tmp_path / "r", report).read_text()
    assert "two members of the ensemble prefer the same answer | 0.333 |" in page
    assert "| 2 | 0.167 |" in page


def evaluate_one(roles, tokenizer, prompts, **options):
    return evaluate_all(
        roles,
        tokenizer,
        {"sft": CHECKPOINTS["sft"]},
        prompts[:2],
        sampling=Sampling(4, 0.0),
        others={},
        **options,
    )


def test_ensemble_proxy_is_mean_of_reward_roles(roles, tokenizer, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    roles.save("other", folder)
    head = ScalarHead(32)
    head.bias.data.fill_(2.0)
    head.save(folder)
    roles.attach("reward_1", folder, head=True)
    try:
        alone, second, both = (
            evaluate_one(roles, tokenizer, prompts, rewards=names).checkpoints["sft"].answers[MAIN]
            for names in (["reward"], ["reward_1"], ["reward", "reward_1"])
        )
    finally:
        roles.detach("reward_1")
    assert alone.proxy != second.proxy
    for one, other, mean in zip(alone.proxy, second.proxy, both.proxy, strict=True):
        assert mean == pytest.approx((one + other) / 2, abs=1e-6)


def test_demonstrations_follow_system_message():
    system = {"role": "system", "content": "Be kind."}
    speakers = [m["role"] for m in with_demonstrations([system, *user("Hi?")], SHOTS)]
    assert speakers == ["system", "user", "assistant", "user", "assistant", "user"]
    assert with_demonstrations("Q3: ", [("Q1: ", "A1")]) == "Q1: A1\n\nQ3: "


def test_world_prompts_rejects_other_prompts(prompts):
    assert world_prompts(prompts[:2]) == [p[0]["content"] for p in prompts[:2]]
    assert world_prompts([*prompts, user("Who won the 1998 world cup?")]) is None
    assert world_prompts([[{"role": "system", "content": "x"}, *prompts[0]]]) is None


def test_other_samplings_exclude_main_sampling():
    assert list(other_samplings(Sampling(temperature=0.7))) == ["1.0", "0"]
    assert list(other_samplings(Sampling(temperature=1.0))) == ["0"]
