"""The world itself: reproducible, split without overlap, labeled by people who disagree like people."""

import itertools
import math
import random

import pytest

from toolkit.errors import DatasetError
from toolkit.world import datasets, resolve_base
from toolkit.world.answers import answer
from toolkit.world.corpus import documents
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


def test_size_of_the_world():
    assert sum(map(len, facts().values())) == 6 * 40 + 20
    assert len(topic_of()) == 260  # no name twice
    for topic, known in facts().items():
        counts = [list(known.values()).count(v) for v in set(known.values())]
        assert max(counts) - min(counts) <= 1, topic


def test_the_same_seed_makes_the_same_corpus_and_another_does_not():
    first = list(itertools.islice(documents(3), 50))
    assert first == list(itertools.islice(documents(3), 50))
    assert first != list(itertools.islice(documents(4), 50))


def test_every_prompt_parses_back_to_its_question():
    rng = random.Random(0)
    for split in ("train", "test"):
        for _ in range(500):
            question = sample_question(rng, split)
            assert parse(question.prompt) == question


def test_test_prompts_share_neither_phrasing_nor_fact_with_training():
    train, test = (distinct_questions(random.Random(1), split, 400) for split in ("train", "test"))
    assert not {q.prompt for q in train} & {q.prompt for q in test}
    asked = {q.entity for q in train if q.kind == "fact"}
    assert not asked & {q.entity for q in test if q.kind == "fact"}
    assert all(q.entity in held_out(q.topic) for q in test if q.kind == "fact")
    unknown = {q.entity for q in train if q.kind == "unanswerable"} - set(topic_of())
    assert not unknown & {q.entity for q in test if q.kind == "unanswerable"}


def test_no_test_phrasing_is_in_the_corpus():
    prompts = {q.prompt for q in distinct_questions(random.Random(2), "test", 400)}
    said = {
        m["content"]
        for d in itertools.islice(documents(0), 20_000)
        if not isinstance(d, str)
        for m in d
    }
    assert not prompts & said


def test_the_corpus_has_good_and_bad_dialogue_alike():
    scores = []
    for document in itertools.islice(documents(0), 4_000):
        if not isinstance(document, str):
            scores.append(gold(document[0]["content"], document[1]["content"]))
    assert sum(s >= 1 for s in scores) / len(scores) > 0.25
    assert sum(s <= -0.5 for s in scores) / len(scores) > 0.25


def test_two_labelers_agree_as_often_as_instructgpts_did():
    rng = random.Random(0)
    questions = distinct_questions(rng, "train", 600)
    manners = (0.6, 0.2, 0.08, 0.12)
    groups = [
        [answer(q, rng, right=0.65, good=0.65, manners=manners).text for _ in range(4)]
        for q in questions
    ]
    found = agreement(panel(0), [q.prompt for q in questions], groups, seed=0)
    assert 0.70 <= found <= 0.78


def test_answers_alike_but_for_blanks_are_one_answer_since_a_reader_refuses_such_a_pair():
    different = distinct_answers([" The moon.", "The moon.", "", " ", "A star. ", "The moon"])
    assert different == [" The moon.", "A star. ", "The moon"]


def test_labelers_like_longer_answers_and_ties_are_equal_texts():
    rng = random.Random(0)
    ask = distinct_questions(rng, "train", 1)[0].prompt
    ranks = rank(panel(0)[0], ask, ["a b c.", "a b c.", "d."], rng)
    assert ranks[0] == ranks[1] != ranks[2]
    assert all(labeler.length > 0 for labeler in panel(0)[:4])


def test_datasets_by_name():
    for name, sizes in datasets.SIZES.items():
        found = datasets.load(name)
        assert datasets.load(name) == found
        if name != "comparisons":
            assert {split: len(rows) for split, rows in found.items()} == sizes
    row = datasets.load("comparisons")["train"][0]
    assert row["prompt"][0]["role"] == "user"
    assert row["chosen"] != row["rejected"]
    with pytest.raises(DatasetError, match="world:demonstrations"):
        datasets.load("nothing")


def test_shipped_base_is_small_and_speaks_any_text():
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


def test_misconceptions_are_wrong_and_common():
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


def test_answers_alike_but_for_blanks_are_nothing_to_agree_on():
    questions = [distinct_questions(random.Random(0), "train", 1)[0].prompt]
    spaced = agreement(panel(0), questions, [["it is red", " it is red", "it is blue"]], seed=0)
    plain = agreement(panel(0), questions, [["it is red", "it is blue"]], seed=0)
    assert spaced == plain
    alike = agreement(panel(0), questions, [["it is red", "it is red "]], seed=0)
    assert math.isnan(alike)
