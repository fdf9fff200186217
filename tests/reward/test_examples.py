"""The example of a reward function."""

import sys

import pytest

from toolkit.errors import ConfigError
from toolkit.reward import examples
from toolkit.reward.examples import positive_tone


def test_tone_orders_sentences_and_is_bounded():
    texts = ["I hate this awful day.", "The bus leaves at nine.", "What a wonderful, happy day!"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    scores = positive_tone(texts, texts)
    assert scores == positive_tone(messages, messages)  # completions are text or messages
    assert -1 <= scores[0] < 0 == scores[1] < scores[2] <= 1


def test_missing_package_is_named(monkeypatch):
    examples._vader.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ConfigError, match="pip install vaderSentiment"):
        positive_tone(["?"], ["Good."])
    examples._vader.cache_clear()
