"""Every recipe reads the same prompt ids, and completions that end with one EOS."""

from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast
from trl import DPOConfig, KTOConfig, SFTConfig

from tests.trainers.prepared import prepared
from toolkit.app.answering.tokens import LockedTokenizer
from toolkit.data.checks import _lengths
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.evaluation.judge import _encode
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.prompts import encode_prompts
from toolkit.reward.adapter import encode_pairs, tokenize_pairs
from toolkit.trainers.supervised import DPOTrainer, KTOTrainer, SFTTrainer

BOS, EOS, IM_START, IM_END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
SPECIAL = [BOS, EOS, IM_START, IM_END]
CHARACTERS = [chr(i) for i in range(32, 127)] + ["\n", "▁"]


def characters(
    template=None, *, start=(), end=(), eos=EOS, pad=None, space=None, merges=()
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character, except for special tokens and `merges`.

    It adds `start` and `end` to a text; `space` is "legacy" or a prepend scheme of SentencePiece.
    """
    vocabulary = [*SPECIAL, *CHARACTERS, *map("".join, merges)]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, list(merges)))
    if space == "legacy":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif space:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens(SPECIAL)
    if start or end:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join([*start, "$A", *end]),
            special_tokens=[(t, vocabulary.index(t)) for t in {*start, *end}],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
        additional_special_tokens=[IM_START, IM_END],
    )


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (  # writes BOS, puts the system message into the user's turn, strips texts
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'user' %}"
    "[INST] {% if loop.index0 == 1 and messages[0].role == 'system' %}"
    "<<{{ messages[0].content }}>> {% endif %}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
ENDLESS = (
    "{% for m in messages %}{{ 'Q' if m.role == 'user' else 'A' }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)


def chat(*texts, system=None):
    """Messages of a user and an assistant in turn."""
    roles = ["user", "assistant"] * len(texts)
    turns = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def answer(text):
    return [{"role": "assistant", "content": text}]


PLAIN = ("Sky?", " Blue.")
CHAT = (chat("Sky?"), answer("Blue."))
INST = ("<s>[INST] Sky? [/INST]", " Blue.</s>")  # rows that a template has rendered already
CHATML_TEXT = (f"{IM_START}user\nSky?{IM_END}\n{IM_START}assistant\n", f"Blue.{IM_END}\n")
CASES = {  # a tokenizer, a prompt and a completion -> tokens of the prompt and of the completion
    "adds nothing": (characters(), *PLAIN, "Sky?", " Blue.</s>"),
    "adds BOS": (characters(start=[BOS]), *PLAIN, "<s>Sky?", " Blue.</s>"),
    "adds BOS and EOS": (characters(start=[BOS], end=[EOS]), *PLAIN, "<s>Sky?", " Blue.</s>"),
    "adds EOS only": (characters(end=[EOS]), *PLAIN, "Sky?", " Blue.</s>"),
    "pad is EOS": (characters(pad=EOS), *PLAIN, "Sky?", " Blue.</s>"),
    "completion ends with EOS": (characters(), "Sky?", " Blue.</s>", "Sky?", " Blue.</s>"),
    "whitespace after EOS": (characters(), "Sky?", "Blue. </s> \n", "Sky?", "Blue. </s>"),
    "two end tokens": (characters(), "Sky?", f"Blue.{IM_END}\n{EOS}", "Sky?", "Blue.</s>"),
    "rendered row, adds nothing": (characters(), *INST, INST[0], INST[1]),
    "rendered row, adds BOS": (characters(start=[BOS], end=[EOS]), *INST, INST[0], INST[1]),
    "rendered row, BOS twice": (characters(start=[BOS]), f"<s>{INST[0]}", INST[1], *INST),
    "rendered ChatML": (characters(eos=IM_END), *CHATML_TEXT, CHATML_TEXT[0], f"Blue.{IM_END}"),
    "rendered ChatML, another EOS": (characters(), *CHATML_TEXT, CHATML_TEXT[0], "Blue.</s>"),
    "template writes BOS": (
        characters(LLAMA_2, start=[BOS], end=[EOS]),
        *CHAT,
        "<s>[INST] Sky? [/INST]",
        " Blue.</s>",
    ),
    "template strips": (
        characters(LLAMA_2),
        chat(" Sky?\n"),
        answer(" Blue.\n"),
        "<s>[INST] Sky? [/INST]",
        " Blue.</s>",
    ),
    "template merges the system message": (
        characters(LLAMA_2, start=[BOS]),
        chat("Sky?", system="Brief."),
        answer("Blue."),
        "<s>[INST] <<Brief.>> Sky? [/INST]",
        " Blue.</s>",
    ),
    "template writes after EOS": (
        characters(CHATML, eos=IM_END),
        *CHAT,
        CHATML_TEXT[0],
        f"Blue.{IM_END}",
    ),
    "template ends with another token": (characters(CHATML), *CHAT, CHATML_TEXT[0], "Blue.</s>"),
    "several turns": (
        characters(CHATML, eos=IM_END),
        chat("Sky?", "Blue.", "Snow?", system="Brief."),
        answer("White."),
        f"{IM_START}system\nBrief.{IM_END}\n{IM_START}user\nSky?{IM_END}\n{IM_START}assistant\n"
        f"Blue.{IM_END}\n{IM_START}user\nSnow?{IM_END}\n{IM_START}assistant\n",
        f"White.{IM_END}",
    ),
    "template without EOS": (
        characters(ENDLESS, start=[BOS]),
        *CHAT,
        "Q: Sky?\n\nA: ",
        "Blue.</s>",
    ),
    "legacy SentencePiece": (
        characters(start=[BOS], space="legacy"),
        "Say: inter",
        "national",
        "<s>▁Say:▁inter",
        "national</s>",
    ),
    "SentencePiece, every text": (
        characters(LLAMA_2, start=[BOS], space="always"),
        *CHAT,
        "<s>▁[INST]▁Sky?▁[/INST]",
        "▁Blue.</s>",
    ),
    "SentencePiece, first text": (
        characters(start=[BOS], space="first"),
        "Sky?",
        "Blue. Yes.",
        "<s>▁Sky?",
        "Blue.▁Yes.</s>",
    ),
    "tokens merge at the border": (
        characters(merges=[("1", "2"), ("3", "4"), ("2", "3"), ("12", "34")]),
        "No. 12",
        "34",
        "No. |12",
        "34|</s>",
    ),
}
WORSE = "Red."


@pytest.mark.parametrize("name", CASES)
def test_all_recipes_read_the_same_ids(name, tmp_path):
    tokenizer, prompt, completion, prompt_tokens, completion_tokens = CASES[name]
    plain = isinstance(prompt, str)
    worse = WORSE if plain else answer(WORSE)
    start, good = ids(tokenizer, prompt_tokens), ids(tokenizer, completion_tokens)
    bad = encode_completion(tokenizer, prompt, worse)
    assert (encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, completion)) == (
        start,
        good,
    )
    assert bad.count(tokenizer.eos_token_id) == 1

    labelled = Dataset.from_list([{"prompt": prompt, "completion": completion, "label": True}])
    sft_rows = labelled.remove_columns("label")
    sft = prepared(SFTTrainer, SFTConfig, sft_rows, tokenizer, tmp_path, completion_only_loss=True)
    assert sft["input_ids"] == start + good
    assert sft["labels"] == [-100] * len(start) + good
    kto = prepared(KTOTrainer, KTOConfig, labelled, tokenizer, tmp_path, calculate_KL=False, **KTO)
    assert (kto["prompt_ids"], kto["completion_ids"]) == (start, good)

    pair = {"prompt": prompt, "chosen": completion, "rejected": worse}
    pairs = Dataset.from_list([pair])
    dpo = prepared(DPOTrainer, DPOConfig, pairs, tokenizer, tmp_path)
    assert [dpo[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")] == [start, good, bad]
    reward = tokenize_pairs(pairs, tokenizer, max_length=None, place="train")[0]
    assert (reward["chosen_ids"], reward["rejected_ids"]) == (start + good, start + bad)
    judged = _encode(tokenizer, [pair])
    assert (judged["chosen"], judged["rejected"]) == ([(start, good)], [(start, bad)])
    assert encode_pairs(tokenizer, [(prompt, completion)]) == [(start, good)]  # demonstrations
    assert _lengths(tokenizer, pair) == (len(start), len(start) + max(len(good), len(bad)))

    base = SimpleNamespace(base=SimpleNamespace(config=LlamaConfig()))
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    ppo = encode_prompts(sft_rows.select_columns("prompt"), tokenizer, base, args)
    assert ppo[0]["prompt_ids"] == start
    if not plain:
        app = LockedTokenizer(tokenizer)
        text = completion[0]["content"]
        assert (app.prompt(prompt), app.completion(prompt, text)) == (start, good)


KTO = {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def ids(tokenizer, tokens):
    """Ids of characters, special tokens, and merged tokens next to a bar."""
    vocabulary = tokenizer.get_vocab()
    result = []
    for part in tokens.split("|") if "<|" not in tokens else [tokens]:
        while part:
            token = next(
                (t for t in [part, *SPECIAL] if part.startswith(t) and t in vocabulary), ""
            )
            token = token or part[0]
            result.append(vocabulary[token])
            part = part[len(token) :]
    return result


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Sky.", "<s>Sky.</s>"),
        ("<s>[INST] Sky? [/INST] Blue.</s>", "<s>[INST] Sky? [/INST] Blue.</s>"),
        (f"Sky.{IM_END}\n", "<s>Sky.</s>"),
        ("one</s>two", "<s>one</s>two</s>"),  # two documents
    ],
)
def test_texts_have_one_bos_and_end_with_one_eos(text, tokens, tmp_path):
    for end in ([], [EOS]):
        tokenizer = characters(start=[BOS], end=end)
        rows = Dataset.from_list([{"text": text}])
        row = prepared(SFTTrainer, SFTConfig, rows, tokenizer, tmp_path, completion_only_loss=False)
        assert row["input_ids"] == row["labels"] == ids(tokenizer, tokens)
        assert _lengths(tokenizer, {"text": text}) == (0, len(row["input_ids"]))


def test_pairs_without_a_prompt_column_have_the_same_ids(tmp_path):
    tokenizer = characters(start=[BOS], end=[EOS])
    pair = {"chosen": "Sky? Blue.", "rejected": "Sky? Red."}
    dpo = prepared(DPOTrainer, DPOConfig, Dataset.from_list([pair]), tokenizer, tmp_path)
    tokens = [dpo[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")]
    assert tokens == [ids(tokenizer, t) for t in ("<s>Sky?", " Blue.</s>", " Red.</s>")]


def test_streamed_rows_have_the_same_ids(tmp_path):
    tokenizer = characters(start=[BOS], end=[EOS])
    row = {"prompt": INST[0], "completion": INST[1]}
    stream = IterableDataset.from_generator(lambda: iter([row]))
    sft = prepared(SFTTrainer, SFTConfig, stream, tokenizer, tmp_path, completion_only_loss=True)
    assert sft["input_ids"] == ids(tokenizer, "".join(INST))


def test_assistant_masks_cover_earlier_answers_and_the_completion(tmp_path):
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q{{ m.content }}{% else %}A"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A{% endif %}"
    )
    tokenizer = characters(template)
    rows = Dataset.from_list([{"prompt": chat("1", "23", "4"), "completion": answer("5")}])
    options = {"completion_only_loss": False, "assistant_only_loss": True}
    row = prepared(SFTTrainer, SFTConfig, rows, tokenizer, tmp_path, **options)
    assert row["input_ids"] == ids(tokenizer, "Q1A23</s>Q4A5</s>")
    trained = [i for i, label in enumerate(row["labels"]) if label != -100]
    assert trained == [3, 4, 5, 9, 10]


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("Finish the word: inter", "national"), ("The number is 12", "34"), ("Sky?\nA: ", "Blue.")],
)
def test_border_of_embedded_tokenizer_is_kept(tokenizer, tmp_path, prompt, completion):
    rows = Dataset.from_list([{"prompt": prompt, "completion": completion}])
    row = prepared(SFTTrainer, SFTConfig, rows, tokenizer, tmp_path, completion_only_loss=True)
    start = tokenizer(prompt)["input_ids"]
    assert row["input_ids"][: len(start)] == start
    assert row["labels"][: len(start)] == [-100] * len(start)
    assert tokenizer.decode(row["input_ids"][len(start) :]) == f"{completion}<|end|>"
