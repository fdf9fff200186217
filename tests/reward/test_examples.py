"""The examples of reward functions, and one of TRL."""

import sys

import pytest

from toolkit.errors import ConfigError
from toolkit.reward import examples
from toolkit.reward.examples import correct_sum, positive_tone, short_sentence
from toolkit.reward.functions import load_reward_functions


def test_tone_orders_sentences_and_is_bounded():
    texts = ["I hate this awful day.", "The bus leaves at nine.", "What a wonderful, happy day!"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    scores = positive_tone(texts, texts)
    assert scores == positive_tone(messages, messages)  # completions are text or messages
    assert -1 <= scores[0] < 0 == scores[1] < scores[2] <= 1


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Water your plants in the morning.", 1.0),
        ("Water your plants in the morning", 0.0),
        ("Water them. Then wait.", 0.0),
        ("Should you water them?", 0.0),
        ("Water.", 0.0),
        ("Water " * 12 + "them.", 0.0),
    ],
)
def test_format_of_short_sentence_is_checked(answer, score):
    assert short_sentence(["?"], [answer]) == [score]
    assert short_sentence(["?"], [[{"role": "assistant", "content": answer}]]) == [score]


def test_missing_package_is_named(monkeypatch):
    examples._vader.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ConfigError, match="pip install vaderSentiment"):
        positive_tone(["?"], ["Good."])
    examples._vader.cache_clear()


def test_sums_are_checked_exactly():
    asked = ["What is 3 plus 4?"] * 4 + ["Hello."]
    answers = ["3 plus 4 is 7.", "It is 8.", "I do not know.", "It is 17.", "Hello, friend."]
    messages = [[{"role": "user", "content": text}] for text in asked]
    expected = [1.0, 0.0, 0.0, 0.0, None]
    assert correct_sum(asked, answers) == expected
    replies = [[{"role": "assistant", "content": text}] for text in answers]
    assert correct_sum(messages, replies) == expected


def test_maths_are_checked_by_trl():
    pytest.importorskip("math_verify", reason="the extra `maths` is not installed")
    (reward,) = load_reward_functions(["trl.rewards:accuracy_reward"])
    answers = [r"It is \boxed{\frac{1}{2}}.", r"It is \boxed{0.5}.", r"It is \boxed{2}."]
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    assert reward(completions=completions, solution=[r"$\frac{1}{2}$"] * 3) == [1.0, 1.0, 0.0]
