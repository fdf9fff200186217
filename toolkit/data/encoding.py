"""Token ids of prompts, completions and texts; every recipe tokenizes its rows here.

Prompt and completion are tokenized separately, so that no token spans the border: PPO samples from
the prompt's ids alone. A completion ends with exactly one EOS, as a sampled completion does.
"""

from array import array
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from toolkit.data.messages import END_OF_THOUGHT, THOUGHT, Message, assistant, user
from toolkit.data.row_errors import RowError, describe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[Message]
TEMPLATE_CHECK = "chat template"  # the check's name in counts of failed rows
SEPARATORS = ("\n", "~", "|")  # texts with which few words merge into one token
# Checks and trainers encode the same rows several times. Shorter texts (in characters) are kept.
CACHED, CACHED_LENGTH = 4096, 2000


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Token ids of a text, or of messages rendered with the start of the assistant's turn.

    A text starts with the tokens that the tokenizer adds (BOS), once even if the text contains them. Tokens
    that the tokenizer adds at the end (EOS) are left out, because the completion follows.

    Raises: RowError as `render_prompt`.
    """
    if isinstance(prompt, str):
        return _with_start(tokenizer, token_ids(tokenizer, prompt))
    return token_ids(tokenizer, render_prompt(tokenizer, prompt))


def encode_completion(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, completion: Prompt
) -> list[int]:
    """Token ids of a completion as they follow the prompt's ids, ending with one EOS.

    Raises: RowError if the chat template cannot render the messages, or does not render the prompt
        as a prefix.
    """
    text = completion_text(tokenizer, prompt, completion)
    return [*_continuation(tokenizer, text), _eos_id(tokenizer)]


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a whole text without a prompt: BOS if the tokenizer adds it, and one EOS."""
    ids = token_ids(tokenizer, without_end(tokenizer, text))
    return [*_with_start(tokenizer, ids), _eos_id(tokenizer)]


def token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of a text, without the tokens that the tokenizer adds.

    Raises: RowError if the base has no embedding for one of the text's special tokens.
    """
    ids = _ids if len(text) <= CACHED_LENGTH else _ids.__wrapped__
    return list(ids(tokenizer, len(tokenizer), text))


@lru_cache(maxsize=CACHED)
def _ids(tokenizer: "PreTrainedTokenizerBase", _size: int, text: str) -> "array[int]":
    check_embeddings(tokenizer, text)
    return array("l", tokenizer(text, add_special_tokens=False)["input_ids"])


def check_embeddings(
    tokenizer: "PreTrainedTokenizerBase", text: str, name: str = "the text"
) -> None:
    """Raises: RowError if a text contains a special token for which the base has no embedding."""
    token = next((t for t in _without_embedding(tokenizer, len(tokenizer)) if t in text), None)
    if token is not None:
        problem = f"{name} must not contain the token {token}: the base has no embedding for it"
        raise RowError("token without embedding", problem, text)


@lru_cache(maxsize=8)
def _without_embedding(tokenizer: "PreTrainedTokenizerBase", _size: int) -> list[str]:
    """The added tokens beyond the base's embeddings, such as the image token of Gemma 3's text models."""
    from transformers import PreTrainedConfig

    if not tokenizer.name_or_path:
        return []
    try:
        config, _ = PreTrainedConfig.get_config_dict(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):  # a tokenizer without a base
        return []
    embeddings = (config.get("text_config") or config).get("vocab_size", len(tokenizer))
    added = tokenizer.added_tokens_decoder.items()
    return [str(token) for number, token in added if number >= embeddings]


def render(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any) -> str:
    """Render messages with the chat template.

    Thoughts are passed as `reasoning_content` to a template that reads them nowhere else.

    Raises: RowError with the template's own message.
    """
    if any(END_OF_THOUGHT in message["content"] for message in messages):
        template = str(options.get("chat_template") or tokenizer.chat_template)
        if _has_thought_key(tokenizer, template):
            messages = [_with_thought_key(message) for message in messages]
    if sum(len(message["content"]) for message in messages) > CACHED_LENGTH:
        return _render(tokenizer, messages, **options)
    state = (str(tokenizer.chat_template), tokenizer.bos_token, tokenizer.eos_token)
    return _rendered(tokenizer, state, tuple(tuple(m.items()) for m in messages), **options)


@lru_cache(maxsize=CACHED)
def _rendered(
    tokenizer: "PreTrainedTokenizerBase",
    _state: tuple[Any, ...],
    messages: tuple[tuple[tuple[str, str], ...], ...],
    **options: Any,
) -> str:
    return _render(tokenizer, list(map(dict, messages)), **options)


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template is a program and may raise anything
        reason = " ".join(str(error).split())
        problem = f"the chat template cannot render the messages ({reason})"
        raise RowError(TEMPLATE_CHECK, problem) from error


@lru_cache(maxsize=64)
def _has_thought_key(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    """Whether a template writes an empty thought before an answer whose content contains one."""
    if "reasoning_content" not in template:
        return False
    question, answer = user("q"), assistant(f"{THOUGHT}a{END_OF_THOUGHT}b")
    chats = ([question, message] for message in (answer, _with_thought_key(answer)))
    try:
        texts = [_render(tokenizer, chat, chat_template=template) for chat in chats]
    except RowError:
        return False
    return [text.count(END_OF_THOUGHT) for text in texts] == [2, 1]


def _with_thought_key(message: Message) -> Message:
    """The message with the thought of an answer in `reasoning_content`."""
    thought, end, answer = message["content"].partition(END_OF_THOUGHT)
    if message["role"] != "assistant" or not end:
        return message
    thought = thought.strip().removeprefix(THOUGHT).strip()
    return message | {"content": answer.lstrip(), "reasoning_content": thought}


def render_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: list[Message]) -> str:
    """The text of messages with the start of the assistant's turn.

    Raises: RowError if the chat template cannot render the messages, or if it leaves out, moves or
        changes the text of one. Templates may move a system message, strip the whitespace at the ends
        of a text, and leave out thoughts.
    """
    rendered = render(tokenizer, prompt, add_generation_prompt=True)
    roles = tuple(message["role"] for message in prompt)
    dropped = _dropped(tokenizer, str(tokenizer.chat_template), roles)
    position = 0
    for number, message in enumerate(prompt):
        text = _without_thought(message).strip()
        is_system = message["role"] == "system"
        found = rendered.find(text, 0 if is_system else position)
        if found < 0 or (text and number in dropped):
            raise changed_text(f'"prompt" message {number + 1}', message["content"], rendered)
        position = position if is_system else found + len(text)
    return rendered


@lru_cache(maxsize=256)
def _dropped(
    tokenizer: "PreTrainedTokenizerBase", _template: str, roles: tuple[str, ...]
) -> frozenset[int]:
    """The messages that the template leaves out of a conversation with these roles, from 0.

    A real message may be part of another message, so that its omission would not be detected.
    """
    words = [f"word{number}word" for number in range(len(roles))]
    messages = [{"role": r, "content": word} for r, word in zip(roles, words, strict=True)]
    try:
        rendered = render(tokenizer, messages, add_generation_prompt=True).casefold()
    except RowError:  # a template that expects other texts
        return frozenset()
    return frozenset(i for i, word in enumerate(words) if word not in rendered)


def changed_text(name: str, text: str, rendered: str, hint: str = "") -> RowError:
    """The error for a text that the chat template does not write."""
    bare, bare_rendered = ("".join(value.split()) for value in (text, rendered))
    is_reformatted = bare in bare_rendered and text.strip() not in rendered
    change = "changes whitespace inside" if is_reformatted else "leaves out or changes a part of"
    problem = f"the chat template {change} {name}, {describe(text)}"
    return RowError(TEMPLATE_CHECK, f"{problem}; it writes {describe(rendered[-80:])}{hint}")


def _without_thought(message: Message) -> str:
    """The text of a message; templates leave out the thoughts of earlier answers."""
    if message["role"] != "assistant":
        return message["content"]
    return message["content"].rpartition(END_OF_THOUGHT)[2]


def completion_text(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    completion: Prompt,
    *,
    rendered_prompt: str | None = None,
) -> str:
    """The text of a completion as it follows the prompt, without the token that ends it.

    Of messages, this is the text that the template writes after the prompt, up to EOS. Templates
    such as Qwen's write more text after EOS.

    Args:
        rendered_prompt: the prompt's text, to save the time of rendering it again.
    """
    if isinstance(completion, str):
        return without_end(tokenizer, completion)
    assert isinstance(prompt, list)
    whole = render(tokenizer, prompt + completion)
    start = rendered_prompt
    if start is None:
        start = render(tokenizer, prompt, add_generation_prompt=True)
    if not whole.startswith(start):
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(start, whole, strict=False))
        border = len(list(equal))
        problem = (
            "the chat template does not render the prompt as a prefix of the prompt with its answer: "
            f"the prompt ends with {describe(start[border:])}, the answer begins with "
            f"{describe(whole[border:])}"
        )
        hint = thinking_hint(tokenizer, completion[-1]["content"])
        raise RowError(TEMPLATE_CHECK, problem + hint)
    text, eos, _ = whole[len(start) :].partition(str(tokenizer.eos_token))
    return text if eos else without_end(tokenizer, text).rstrip()


def without_end(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """A text without the special tokens at its end, and without the whitespace after them."""
    ends = tuple(special_tokens(tokenizer))
    while (bare := text.rstrip()).endswith(ends):
        text = bare.removesuffix(max((end for end in ends if bare.endswith(end)), key=len))
    return text


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """All tokens that decoding skips."""
    tokens = _added_special_tokens(tokenizer, len(tokenizer)) | set(tokenizer.all_special_tokens)
    return {str(token) for token in tokens if token}


# Some tokenizers have thousands of added tokens. The size is a key, since tokens may be added.
@lru_cache(maxsize=8)
def _added_special_tokens(tokenizer: "PreTrainedTokenizerBase", _size: int) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def _with_start(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """The ids with the tokens that the tokenizer adds at the start of a text, exactly once."""
    while ids[:2] == [tokenizer.bos_token_id] * 2:  # a text that was rendered, encoded and decoded
        ids = ids[1:]
    start = _added_start(tokenizer)
    return ids if ids[: len(start)] == start else start + ids


def _added_start(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that the tokenizer adds to the start of any text, such as BOS."""
    if tokenizer.num_special_tokens_to_add() == 0:
        return []
    bare, whole = token_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    starts = (n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _continuation(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of a text that continues another one.

    SentencePiece puts a space before the first word of every text. Here that would be a second space or one
    inside a word. So the text is tokenized after a separator, whose ids are cut off.
    """
    if not _adds_space(tokenizer, len(tokenizer)):
        return token_ids(tokenizer, text)
    for separator in SEPARATORS:
        start = token_ids(tokenizer, separator)
        ids = token_ids(tokenizer, separator + text)
        if ids[: len(start)] == start:
            return ids[len(start) :]
    return token_ids(tokenizer, text)


@lru_cache(maxsize=8)
def _adds_space(tokenizer: "PreTrainedTokenizerBase", _size: int) -> bool:
    both = token_ids(tokenizer, "a") + token_ids(tokenizer, "b")
    return bool(tokenizer.decode(both) != "ab")


def _eos_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    assert tokenizer.eos_token_id is not None
    return int(tokenizer.eos_token_id)


def thinking_hint(tokenizer: "PreTrainedTokenizerBase", answer: str) -> str:
    """The fix for an answer with a thought that the template does not write."""
    if END_OF_THOUGHT not in answer:
        return ""
    fix = "choose another `chat_template`"
    if "enable_thinking" in str(tokenizer.chat_template):
        fix = "set `chat_template: thinking` if prompts end with an empty thought"
    return f". The answer contains a thought: {fix}, or remove the thoughts"
