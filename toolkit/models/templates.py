"""Chat templates for tokenizers that have none, and the template that a run was trained with."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError, ConfigError

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# `generation` marks what TRL's `assistant_only_loss` trains on
BUILT_IN = {
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- message['content'] ~ '<|im_end|>' -}}{%- endgeneration -%}"
        "{%- else -%}{{- message['content'] ~ '<|im_end|>' -}}{%- endif -%}"
        "{{- '\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    # needs no token but EOS, which every tokenizer has
    "plain": (
        "{%- if bos_token is defined and bos_token -%}{{- bos_token -}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- message['role'] | capitalize ~ ':\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- message['content'] ~ eos_token -}}{%- endgeneration -%}"
        "{%- else -%}{{- message['content'] -}}{%- endif -%}"
        "{{- '\\n\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"
    ),
}
# Qwen's non-thinking mode; a caller who passes `enable_thinking` is still heard
NOT_THINKING = "{%- set enable_thinking = enable_thinking | default(false) -%}"
_SAID = "answer"
_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _SAID}]


def set_template(
    tokenizer: PreTrainedTokenizerBase, *, asked: str | None, parent: str | Path | None
) -> None:
    """Give a tokenizer its chat template: the parent's, the one asked for, its own, or a built-in.

    A tokenizer with none gets `chatml` where it has that template's tokens, else `plain`, which is
    said on the screen; so is what `_without_thinking` changes. A parent's is taken as it is.

    Args:
        asked: `chatml`, `plain`, or a file.
        parent: a run whose adapter is gone on from; what it was trained with decides.

    Raises: ConfigError for a template that cannot be used or is not the parent's.
    """
    if parent is not None and has_tokenizer(Path(parent)):
        template = saved_template(Path(parent))
        given = template if asked is None else _checked(tokenizer, asked)
        if template not in (given, _without_thinking(tokenizer, given)):
            raise ConfigError(
                f"chat_template: {asked} is not the template that {parent} was trained with; remove "
                "the option, the parent's is taken"
            )
        tokenizer.chat_template = template
    elif asked is not None:
        tokenizer.chat_template = _checked(tokenizer, asked)
    elif tokenizer.chat_template is None:
        name = "plain" if set(CHATML_TOKENS) - set(tokenizer.get_vocab()) else "chatml"
        print(
            f"{tokenizer.name_or_path}: no chat template; messages are rendered with the built-in "
            f"`{name}` (--chat_template chatml|plain|FILE)",
            flush=True,
        )
        tokenizer.chat_template = BUILT_IN[name]
    if parent is None or not has_tokenizer(Path(parent)):
        given = tokenizer.chat_template
        tokenizer.chat_template = _without_thinking(tokenizer, given)
        if tokenizer.chat_template != given:
            print(
                f"{tokenizer.name_or_path}: its chat template thinks unless told otherwise; the empty "
                "thought that it writes stands in the prompts, not in the answers",
                flush=True,
            )


def has_tokenizer(run: Path) -> bool:
    """Whether a folder holds a tokenizer's settings; an adapter made elsewhere may not."""
    return (run / "tokenizer_config.json").is_file()


def saved_template(run: Path) -> str | None:
    """The chat template saved with a run's tokenizer.

    Raises: CheckpointError where the files are damaged.
    """
    file = run / "chat_template.jinja"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        settings = json.loads((run / "tokenizer_config.json").read_text(encoding="utf-8"))
        found = settings.get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{run}: damaged tokenizer files ({error})") from error
    return found if isinstance(found, str) else None


def after_assistant(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> str:
    """What a template writes right after an assistant's last words."""
    whole = tokenizer.apply_chat_template(_TURNS, chat_template=template, tokenize=False)
    return str(whole).rpartition(_SAID)[2]


def _without_thinking(tokenizer: PreTrainedTokenizerBase, template: Any) -> Any:
    """A template whose prompts end where the answer begins, if not thinking makes it so.

    Qwen3's puts an empty `<think>` block before the last answer, which the prompt that asks for it
    lacks: every answer would be taught to begin with the block, and every sampled one would show it.
    With `enable_thinking` false the prompt holds the block.
    """
    if not isinstance(template, str) or "enable_thinking" not in template:
        return template
    if _asks_for_answer(tokenizer, template):
        return template
    quiet = NOT_THINKING + template
    return quiet if _asks_for_answer(tokenizer, quiet) else template


def _asks_for_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether the whole is the prompt and then, at once, the answer."""
    asked, whole = (
        str(
            tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=asking
            )
        )
        for turns, asking in ((_TURNS[:1], True), (_TURNS, False))
    )
    return whole.startswith(asked + _SAID)


def _checked(tokenizer: PreTrainedTokenizerBase, asked: str) -> str:
    """The text of the template asked for, if this tokenizer can use it."""
    template = BUILT_IN.get(asked)
    missing = set(CHATML_TOKENS) - set(tokenizer.get_vocab())
    if asked == "chatml" and missing:
        raise ConfigError(
            f"chat_template: chatml needs the token {min(missing)}, which this tokenizer has not; new "
            "tokens would need trained embeddings. Choose plain, or a file"
        )
    if template is None:
        try:
            template = Path(asked).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"chat_template: must be {', '.join(BUILT_IN)} or a Jinja file, got {asked!r}"
            ) from error
    try:
        rest = after_assistant(tokenizer, template)
        prompt = tokenizer.apply_chat_template(
            _TURNS[:1], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(_TURNS, chat_template=template, tokenize=False)
    except Exception as error:  # Jinja has many
        reason = " ".join(str(error).split())
        raise ConfigError(f"chat_template: {asked} cannot be rendered ({reason})") from error
    if not any(rest.startswith(token) for token in special_tokens(tokenizer)):
        raise ConfigError(
            f"chat_template: {asked} writes {rest[:20]!r} after an answer, expected EOS "
            f"({tokenizer.eos_token}) or another special token: no answer would end"
        )
    if not str(whole).startswith(str(prompt)):
        raise ConfigError(
            f"chat_template: {asked} does not render the prompt as the start of prompt and answer"
        )
    return template


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every token that a decoder would skip."""
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return added | set(tokenizer.all_special_tokens)
