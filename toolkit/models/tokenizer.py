"""The base's tokenizer: chat template, end of turn, padding, and the tokens that end a completion."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.encoding import render, special_tokens
from toolkit.data.messages import assistant, user
from toolkit.data.row_errors import RowError
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.fixed_date import fix_date, without_date
from toolkit.reading import read_json, read_text

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# `generation` marks the tokens that TRL's `assistant_only_loss` trains on
BUILT_IN = {
    "chatml": (
        "{%- for message in messages -%}{{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- message['content'] ~ '<|im_end|>' -}}{%- endgeneration -%}"
        "{%- else -%}{{- message['content'] ~ '<|im_end|>' -}}{%- endif -%}"
        "{{- '\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    # needs no special token but EOS, which every tokenizer has
    "plain": (
        "{%- if bos_token is defined and bos_token -%}{{- bos_token -}}{%- endif -%}"
        "{%- for message in messages -%}{{- message['role'] | capitalize ~ ':\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- message['content'] ~ eos_token -}}{%- endgeneration -%}"
        "{%- else -%}{{- message['content'] -}}{%- endif -%}"
        "{{- '\\n\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"
    ),
}
# Qwen's non-thinking mode as the default; a caller can still pass `enable_thinking`
NOT_THINKING = "{%- set enable_thinking = enable_thinking | default(false) -%}"
THINKING, THINKS = "thinking", NOT_THINKING.replace("false", "true")
# texts that a template changes if it escapes characters or changes their case
_QUESTION, _ANSWER = "Is 1 < 2 & 3?", "Yes, 1 < 2 & 3."
_TURNS = [user(_QUESTION), assistant(_ANSWER)]


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    parent: str | Path | None = None,
    trust_remote_code: bool = False,
    resume: str | Path | None = None,
) -> PreTrainedTokenizerBase:
    """Load a base's tokenizer with left padding; EOS becomes the token that ends a turn.

    A base's own EOS often ends documents, while its chat template ends turns with another token
    (Qwen3's `<|endoftext|>` and `<|im_end|>`). Training would teach one end token, and sampling
    would wait for the other. A missing pad token becomes the base's EOS; masks never come from `ids
    != pad`, so that is safe.

    Args:
        chat_template: `chatml`, `plain`, a Jinja file, or `thinking`, which is the tokenizer's own template
            with thinking enabled; None is the tokenizer's own template with thinking disabled.
        parent: a run whose adapter training or sampling starts from; its chat template is used.
        resume: the checkpoint that a run resumes from; the date in its chat template is used.

    Raises: CheckpointError without an EOS token; ConfigError for a template that cannot be used or
        differs from the parent's.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=revision, padding_side="left", trust_remote_code=trust_remote_code
    )
    if tokenizer.eos_token is None:
        raise CheckpointError(f"{name}: the tokenizer has no EOS token, so no completion can end")
    if parent is not None and has_tokenizer(Path(parent)):
        tokenizer.chat_template = _parent_template(tokenizer, Path(parent), chat_template)
    else:
        tokenizer.chat_template = _new_template(tokenizer, chat_template)
    if isinstance(tokenizer.chat_template, str):
        has_saved = resume is not None and has_tokenizer(Path(resume))
        saved = saved_template(Path(str(resume))) if has_saved else None
        tokenizer.chat_template = fix_date(tokenizer.chat_template, saved=saved)
    end = _end_of_turn(tokenizer)
    pad_by_eos(tokenizer)
    if end is not None:
        tokenizer.eos_token = end
    return tokenizer


def pad_by_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Use the EOS token as a missing pad token; masks never come from `ids != pad`."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def stop_ids(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of all tokens that end a completion: the tokenizer's EOS and the model config's.

    Raises: CheckpointError if the config's are not token ids.
    """
    declared = getattr(base.generation_config, "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(isinstance(token, int) for token in listed):
        raise CheckpointError(
            f"{tokenizer.name_or_path}: `eos_token_id` of its generation config must be a token id "
            f"or a list of them, got {str(declared)[:80]}"
        )
    return list(dict.fromkeys([tokenizer.eos_token_id, *listed]))


def has_tokenizer(run: Path) -> bool:
    """Whether a folder holds a tokenizer; an adapter made elsewhere may lack one."""
    return (run / "tokenizer_config.json").is_file()


def saved_template(run: Path) -> str | None:
    """The chat template saved with a run's tokenizer.

    Raises: CheckpointError if the files are damaged.
    """
    file = run / "chat_template.jinja"
    try:
        if file.is_file():
            return read_text(file)
        settings = read_json(run / "tokenizer_config.json", at_most=16 << 20)
        template = settings.get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{run}: damaged tokenizer files ({error})") from error
    return template if isinstance(template, str) else None


def _parent_template(
    tokenizer: PreTrainedTokenizerBase, parent: Path, option: str | None
) -> str | None:
    """The parent's template; the option must be unset or name the same template."""
    template = saved_template(parent)
    if template is not None:
        _require_texts(tokenizer, template, str(parent))
    if option is not None:
        chosen = _checked(tokenizer, option)
        quiet = chosen if option == THINKING else _without_thinking(tokenizer, chosen)
        if template is None or without_date(template) not in (chosen, quiet):
            raise ConfigError(
                f"chat_template: {option} is not the template that {parent} was trained with; remove "
                "the option to use the parent's"
            )
    return template


def _new_template(tokenizer: PreTrainedTokenizerBase, option: str | None) -> str | None:
    """The option's template, else the tokenizer's own, else `chatml` or `plain`."""
    template = tokenizer.chat_template
    if option is not None:
        template = _checked(tokenizer, option)
    elif template is None:
        name = "plain" if set(CHATML_TOKENS) - set(tokenizer.get_vocab()) else "chatml"
        print(
            f"{tokenizer.name_or_path}: no chat template; messages are rendered with the built-in "
            f"`{name}` (--chat_template chatml|plain|FILE)",
            flush=True,
        )
        template = BUILT_IN[name]
    else:
        _require_texts(tokenizer, None, tokenizer.name_or_path)
    quiet = _without_thinking(tokenizer, template) if option != THINKING else template
    if quiet != template:
        print(
            f"{tokenizer.name_or_path}: its chat template enables thinking by default; thinking is "
            f"disabled, so that prompts and not completions contain the empty <think> block (for "
            f"answers with thoughts: --chat_template {THINKING})",
            flush=True,
        )
    return quiet


def _without_thinking(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str | None:
    """The template with `enable_thinking` false by default, if prompts are complete only then.

    Qwen3's template puts an empty `<think>` block before the last answer but not at the end of a
    prompt. Training would teach every completion to start with the block. With `enable_thinking`
    false the prompt contains the block.
    """
    if not isinstance(template, str) or "enable_thinking" not in template:
        return template
    if _prompt_is_prefix(tokenizer, template):
        return template
    quiet = NOT_THINKING + template
    return quiet if _prompt_is_prefix(tokenizer, quiet) else template


def _thinking(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own template with `enable_thinking` true by default."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or "enable_thinking" not in template:
        raise ConfigError(
            f"chat_template: {THINKING} is for a tokenizer whose own template has the option "
            f"`enable_thinking`; {tokenizer.name_or_path} has none"
        )
    _require_texts(tokenizer, template, f"chat_template: {THINKING}")
    thinking = THINKS + template
    by_default, enabled = (_render(tokenizer, t, prompt=True) for t in (template, thinking))
    return template if by_default == enabled else thinking


def _prompt_is_prefix(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a rendered chat is the rendered prompt, directly followed by the answer."""
    prompt = _render(tokenizer, template, prompt=True)
    return _render(tokenizer, template).startswith(prompt + _ANSWER)


def _checked(tokenizer: PreTrainedTokenizerBase, option: str) -> str:
    """The text of the template that `chat_template` names, if it works with this tokenizer."""
    if option == THINKING:
        return _thinking(tokenizer)
    template = BUILT_IN.get(option)
    missing = set(CHATML_TOKENS) - set(tokenizer.get_vocab())
    if option == "chatml" and missing:
        raise ConfigError(
            f"chat_template: chatml needs the token {min(missing)}, which this tokenizer lacks; a "
            "new token would have an untrained embedding. Choose plain or a file"
        )
    if template is None:
        try:
            template = read_text(Path(option).expanduser())
        except (OSError, ValueError) as error:
            names = ", ".join([*BUILT_IN, THINKING])
            raise ConfigError(
                f"chat_template: must be {names} or a Jinja file, got {option!r}"
            ) from error
    _require_texts(tokenizer, template, f"chat_template: {option}")
    rest = _after_answer(tokenizer, template)
    chat, prompt = (_render(tokenizer, template, prompt=p) for p in (False, True))
    if not any(rest.startswith(token) for token in special_tokens(tokenizer)):
        raise ConfigError(
            f"chat_template: {option} writes {rest[:20]!r} after an answer, expected EOS "
            f"({tokenizer.eos_token}) or another special token, without which no completion would end"
        )
    if not chat.startswith(prompt):
        raise ConfigError(
            f"chat_template: {option} does not render the prompt as the start of prompt and answer"
        )
    return template


def _render(
    tokenizer: PreTrainedTokenizerBase, template: str | None, *, prompt: bool = False
) -> str:
    """Render a user's and an assistant's turn; with `prompt`, only the user's, as a prompt.

    Raises: RowError if the template cannot be rendered.
    """
    turns = _TURNS[:1] if prompt else _TURNS
    return render(tokenizer, turns, chat_template=template, add_generation_prompt=prompt)


def _require_texts(tokenizer: PreTrainedTokenizerBase, template: str | None, owner: str) -> None:
    """Raise ConfigError unless a template renders a question and an answer as they are, once.

    Args:
        template: None for the tokenizer's own, which can be a dictionary of several templates.
        owner: the option, run or tokenizer that the template comes from.
    """
    try:
        prompt, chat = (_render(tokenizer, template, prompt=p) for p in (True, False))
    except RowError as error:
        problem = str(error)
    else:
        if prompt.count(_QUESTION) == chat.count(_ANSWER) == 1:
            return
        problem = "the chat template leaves out, repeats or changes the text of messages"
        if "type" in str(template or tokenizer.chat_template):
            problem += "; perhaps the template expects their content as a list of parts"
    raise ConfigError(
        f"{owner}: {problem}. Choose another `chat_template`: {', '.join(BUILT_IN)} or a Jinja file"
    )


def _after_answer(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> str:
    """The text that a template writes after the assistant's last word."""
    return _render(tokenizer, template).rpartition(_ANSWER)[2]


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that the chat template writes right after the assistant's last word."""
    if tokenizer.chat_template is None:
        return None
    rest = _after_answer(tokenizer).lstrip()
    starts = [t for t in special_tokens(tokenizer) if rest.startswith(t)]
    return max(starts, key=len, default=None)
