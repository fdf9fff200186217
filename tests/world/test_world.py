"""The world is reproducible, its splits do not overlap, and its labelers disagree like people."""

import itertools
import math
import random

import pytest

from toolkit.errors import DatasetError
from toolkit.world import resolve_base
from toolkit.world.answers import answer
from toolkit.world.corpus import documents
from toolkit.world.datasets import SIZES, load
from toolkit.world.gold import gold
from toolkit.world.labelers import agreement, distinct_answers, panel, rank
from toolkit.world.questions import (
    distinct_questions,
    facts,
    held_out,
    parse,
    sample_question,
    topic_of,
)


def test_world_has_260_entities_and_balanced_values():
    assert sum(map(len, facts().values())) == 6 * 40 + 20
    assert len(topic_of()) == 260  # no name twice
    for topic, known in facts().items():
        counts = [list(known.values()).count(v) for v in set(known.values())]
        assert max(counts) - min(counts) <= 1, topic


def test_corpus_depends_only_on_the_seed():
    first = list(itertools.islice(documents(3), 50))
    assert first == list(itertools.islice(documents(3), 50))
    assert first != list(itertools.islice(documents(4), 50))


def test_prompts_parse_back_to_their_questions():
    rng = random.Random(0)
    for split in ("train", "test"):
        for _ in range(500):
            question = sample_question(rng, split)
            assert parse(question.prompt) == question


def test_splits_share_no_prompt_and_no_fact():
    train, test = (distinct_questions(random.Random(1), split, 400) for split in ("train", "test"))
    assert not {q.prompt for q in train} & {q.prompt for q in test}
    entities = {q.entity for q in train if q.kind == "fact"}
    assert not entities & {q.entity for q in test if q.kind == "fact"}
    assert all(q.entity in held_out(q.topic) for q in test if q.kind == "fact")
    unknown = {q.entity for q in train if q.kind == "unanswerable"} - set(topic_of())
    assert not unknown & {q.entity for q in test if q.kind == "unanswerable"}


def test_corpus_has_no_test_phrasing():
    prompts = {q.prompt for q in distinct_questions(random.Random(2), "test", 400)}
    messages = {
        m["content"]
        for d in itertools.islice(documents(0), 20_000)
        if not isinstance(d, str)
        for m in d
    }
    assert not prompts & messages


def test_corpus_has_good_and_bad_dialogues():
    scores = []
    for document in itertools.islice(documents(0), 4_000):
        if not isinstance(document, str):
            scores.append(gold(document[0]["content"], document[1]["content"]))
    assert sum(s >= 1 for s in scores) / len(scores) > 0.25
    assert sum(s <= -0.5 for s in scores) / len(scores) > 0.25


def test_labelers_agree_as_often_as_in_instructgpt():
    rng = random.Random(0)
    questions = distinct_questions(rng, "train", 600)
    manners = (0.6, 0.2, 0.08, 0.12)
    groups = [
        [answer(q, rng, right=0.65, good=0.65, manners=manners).text for _ in range(4)]
        for q in questions
    ]
    share = agreement(panel(0), [q.prompt for q in questions], groups, seed=0)
    assert 0.70 <= share <= 0.78


def test_distinct_answers_ignore_blanks_at_ends():
    different = distinct_answers([" The moon.", "The moon.", "", " ", "A star. ", "The moon"])
    assert different == [" The moon.", "A star. ", "The moon"]


def test_labelers_like_length_and_tie_equal_texts():
    rng = random.Random(0)
    ask = distinct_questions(rng, "train", 1)[0].prompt
    ranks = rank(panel(0)[0], ask, ["a b c.", "a b c.", "d."], rng)
    assert ranks[0] == ranks[1] != ranks[2]
    assert all(labeler.length > 0 for labeler in panel(0)[:4])


def test_datasets_have_their_sizes():
    for name, sizes in SIZES.items():
        dataset = load(name)
        assert load(name) == dataset
        if name != "comparisons":
            assert {split: len(rows) for split, rows in dataset.items()} == sizes
    row = load("comparisons")["train"][0]
    assert row["prompt"][0]["role"] == "user"
    assert row["chosen"] != row["rejected"]
    with pytest.raises(DatasetError, match="world:demonstrations"):
        load("nothing")


def test_shipped_base_is_small_and_encodes_any_text():
    from pathlib import Path

    from transformers import AutoConfig, AutoTokenizer

    folder = Path(resolve_base(None))
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size <= 12 * 2**20
    assert [f.name for f in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert AutoConfig.from_pretrained(folder).model_type == "llama"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    for text in ("Grüße, 世界 🙂", "a\n\tb\x00", "naïve — “quoted”"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_wrong_values_are_mostly_misconceptions():
    from toolkit.world.answers import wrong_value
    from toolkit.world.questions import fact_question, misconceptions

    rng = random.Random(0)
    shares = []
    for topic, known in facts().items():
        for entity, truth in list(known.items())[:5]:
            question = fact_question(rng, "train", entity)
            drawn = [wrong_value(question, rng) for _ in range(40)]
            assert truth not in drawn, topic
            shares.append(drawn.count(misconceptions()[entity]) / 40)
    assert 0.8 < sum(shares) / len(shares) < 0.95


def test_agreement_ignores_answers_that_differ_in_blanks():
    questions = [distinct_questions(random.Random(0), "train", 1)[0].prompt]
    spaced = agreement(panel(0), questions, [["it is red", " it is red", "it is blue"]], seed=0)
    plain = agreement(panel(0), questions, [["it is red", "it is blue"]], seed=0)
    assert spaced == plain
    alike = agreement(panel(0), questions, [["it is red", "it is red "]], seed=0)
    assert math.isnan(alike)
