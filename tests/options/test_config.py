"""Strict parsing: what TRL lets through in silence is one clear line here."""

from dataclasses import dataclass

import pytest
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

from toolkit.errors import ConfigError
from toolkit.options.arguments import EvaluateArguments, LabelArguments, ParentArguments
from toolkit.options.command_line import parse
from toolkit.options.config import better_name, options_of
from toolkit.options.old_names import INSTEAD, REMOVED, RENAMED
from toolkit.recipe import find_recipe, recipes

CLASSES = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig, ParentArguments)


@pytest.fixture
def read(tmp_path):
    def go(text, *words):
        file = tmp_path / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return parse(CLASSES, [f"--config={file}", *words])

    return go


def test_yaml_then_command_line(read):
    script, training, model, _, start = read(
        "dataset_name: world:demonstrations\nlora_r: 8\nlearning_rate: 1e-5\nparent: runs/x",
        "--lora_r",
        "4",
        "--output_dir",
        "runs/y",
    )
    assert (script.dataset_name, model.lora_r, start.parent) == (
        "world:demonstrations",
        4,
        "runs/x",
    )
    assert training.learning_rate == 1e-5  # YAML reads 1e-5 as text
    assert training.output_dir == "runs/y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_r: 3.7", "`lora_r` must be int, got 3.7 (float)"),
        ("use_peft: 5", "`use_peft` must be bool, got 5 (int)"),
        ("dtype: floatt16", "`dtype` must be one of auto, bfloat16"),
        ("lora_rr: 3", "unknown option `lora_rr`; did you mean `lora_r`?"),
        ("evaluation_strategy: steps", "`evaluation_strategy`; its name is `eval_strategy`"),
        ("max_seq_length: 128", "unknown option `max_seq_length`; its name is `max_length`"),
        ("torch_dtype: float16", "unknown option `torch_dtype`; its name is `dtype`"),
        ("per_gpu_train_batch_size: 2", "its name is `per_device_train_batch_size`"),
        ("no_cuda: true", "unknown option `no_cuda`; its name is `use_cpu`"),
        ("lora_modules: [q]", "unknown option `lora_modules`; its name is `lora_target_modules`"),
        ("bnb_4bit_dtype: bfloat16", "its name is `dtype` (`dtype` is also the compute type"),
        ("warmup_ratio: 0.1", "its name is `warmup_steps` (a value below 1 is a share of all"),
        ("tokenizer: x", "unknown option `tokenizer`; remove it: the tokenizer is the base's"),
        ("overwrite_output_dir: true", "remove it: a new run replaces a finished run"),
        ("ppo_epochs: 4", "unknown option `ppo_epochs`"),  # not an option of this command
        ("learning_rate: fast", "`learning_rate` must be float"),
        ("lora_target_modules: [q_proj, 3]", "`lora_target_modules`[1] must be str"),
        ("datasets: [{path: x, nam: y}]", "unknown option `nam`; did you mean `name`?"),
        ("datasets: [{name: y}]", "`path` is missing"),
        ("datasets: x", "`datasets` must be list"),
        ("env: {A: 1}", "`env` is not supported"),
        ("[1, 2]", "expected a mapping"),
        ("a: [", "not a YAML file"),
        ("lr_scheduler_type: cosin", "`lr_scheduler_type` must be one of linear, cosine"),
        ("optim: bogus", "`optim` must be one of adamw_torch, "),
        ("bf16: true\nfp16: true", "At most one of fp16 and bf16"),
    ],
)
def test_wrong_yaml_raises_one_line(read, text, message):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora_r", "x"], "invalid int value: 'x'"),
        (["--nothing", "1"], "unknown option `--nothing`; --help lists the options"),
        (
            ["--evaluation_strategy", "steps"],
            "`--evaluation_strategy`; its name is `eval_strategy`",
        ),
        (["--max-seq-length=9"], "unknown option `--max-seq-length`; its name is `max_length`"),
        (["--learning_rat", "1"], "`--learning_rat`; did you mean `learning_rate`?"),
        (["--learning_rate", "nan"], "--learning_rate must be a finite number, got nan"),
        (["--max_grad_norm", "inf"], "--max_grad_norm must be a finite number, got inf"),
        (["--config"], "needs the path"),
        (["--config", "no/such.yaml"], "no/such.yaml: neither a config file"),
    ],
)
def test_wrong_command_line_raises_one_line(words, message):
    with pytest.raises(ConfigError) as caught:
        parse(CLASSES, words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_never_executed(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text(f"output_dir: !!python/object/apply:os.system ['touch {tmp_path}/pwned']")
    with pytest.raises(ConfigError):
        parse(CLASSES, ["--config", str(file)])
    assert not (tmp_path / "pwned").exists()


def test_machine_without_gpu_needs_no_option(read):
    import torch

    _, training, *_ = read("output_dir: x")
    assert training.use_cpu == (not torch.cuda.is_available())


@dataclass
class Precision:
    """The options of TRL's configs that a machine decides, without their look at the real GPU."""

    output_dir: str = "x"
    use_cpu: bool = False
    bf16: bool | None = None
    fp16: bool = False


@pytest.mark.parametrize(
    ("text", "words", "bf16", "fp16"),
    [
        ("", [], False, True),
        ("bf16: true", [], True, False),
        ("bf16: false", [], False, False),
        ("fp16: false", [], False, False),
        ("fp16: true", [], False, True),
        ("", ["--bf16", "true"], True, False),
        ("", ["--bf16=false"], False, False),
        ("", ["--fp16", "true", "--output_dir", "bf16"], False, True),
    ],
)
def test_gpu_that_emulates_bf16_uses_fp16_by_default(
    tmp_path, monkeypatch, text, words, bf16, fp16
):
    def as_a_t4(including_emulation=True):
        return including_emulation

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", as_a_t4)
    file = tmp_path / "config.yaml"
    file.write_text(text or "{}")
    (found,) = parse([Precision], ["--config", str(file), *words])
    assert (found.use_cpu, found.bf16, found.fp16) == (False, bf16, fp16)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    (found,) = parse([Precision], [])
    assert (found.bf16, found.fp16) == (None, False)


def test_resume_may_be_a_switch(read):
    _, training, *_ = read("resume_from_checkpoint: true")
    assert training.resume_from_checkpoint is True


@pytest.mark.parametrize(
    "text",
    [
        "trust_remote_code: true",
        'trust_remote_code: "yes"',
        "model_init_kwargs: {trust_remote_code: true}",
        "model_init_kwargs: {more: [{trust_remote_code: true}]}",
        """model_init_kwargs: '{"trust_remote_code": true}'""",
        """model_init_kwargs: '[{"trust\\u005fremote_code": true}]'""",
    ],
)
def test_file_cannot_enable_trust_remote_code(read, text):
    with pytest.raises(ConfigError, match=r"cannot be set in a file.*--trust_remote_code true"):
        read(text)


def test_file_cannot_name_a_kernel_of_the_hub(read):
    with pytest.raises(ConfigError, match=r"`attn_implementation` cannot be set in a file"):
        read("attn_implementation: somebody/kernel")
    assert read("attn_implementation: sdpa")[2].attn_implementation == "sdpa"


def test_command_line_can_enable_trust_remote_code(read):
    _, training, *_ = read("trust_remote_code: false\nlora_r: 8", "--trust_remote_code", "true")
    assert training.trust_remote_code is True
    _, training, *_ = read("lora_r: 8")
    assert training.trust_remote_code is False


def test_replacements_of_old_names_exist():
    """Every current name is an option of a recipe, and no old name is one of SFT's."""
    known = {
        recipe: options_of(command.argument_classes()) for recipe, command in recipes().items()
    }
    every = set().union(*known.values())
    assert set(RENAMED.values()) <= every
    assert not (RENAMED.keys() | INSTEAD.keys()) & known["sft"].keys()
    assert not (RENAMED.keys() | INSTEAD.keys() | set(REMOVED)) & known["dpo"].keys()
    assert set(REMOVED) & every <= {"ds3_gather_for_generation"}  # RLOO and GRPO name the reason


def test_removed_option_suggests_no_other_option():
    known = {n: options_of(find_recipe(n).argument_classes()) for n in ("dpo", "ppo")}
    assert "`loss_type: [sigmoid, sft]`" in better_name("rpo_alpha", known["dpo"])
    assert "`target_kl`" in better_name("early_stopping", known["ppo"])
    for name in REMOVED:
        assert better_name(name, known["ppo"]) == "; its library removed it; remove it"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (EvaluateArguments, {"runs": ["a"], "samples_per_prompt": 10**9}),
        (LabelArguments, {"completions": 10**9}),
    ],
)
def test_too_many_answers_per_prompt_are_rejected(arguments, options):
    with pytest.raises(ValueError, match=r"1000, got .*1000000000"):
        arguments(**options)
