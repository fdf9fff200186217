"""PPO's phases on a phantom base: sampling, scoring, and the update of every role."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import disable_dropout_in_model

from toolkit.errors import ConfigError
from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import Batch, collate, policy_pass, scores, state_values
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE, Roles, belongs_to
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.updates import Updater
from toolkit.preflight.dry_run import Peak, as_on_cuda, split, undisturbed, weights
from toolkit.preflight.fake_model import (
    adapter_config,
    made_in,
    phantom_base,
    phantom_mode,
    stored_bytes,
)
from toolkit.preflight.memory_tracker import LiveBytes
from toolkit.sampling.decoding import GrowingLayer, draw, growing_cache, read

TOKEN = 1  # any will do: what a token is does not change what it costs


class PPORehearsal:
    """The roles that `recipes/ppo.py` would attach, without data.

    Args:
        training: PPO's settings.
        model: which base, and the adapter of a policy without a parent.
        parent, reward_model: runs whose adapters' shapes are taken; None for a new adapter's.
        reference: whether there is an adapter of it; by default where there is a parent.
        cuda: count as on a GPU.
        layers: so many of the base's layers; default all.
    """

    def __init__(
        self,
        training: PPOConfig,
        model: Any,
        *,
        parent: str | None,
        reward_model: Sequence[str | None],
        reference: bool | None = None,
        cuda: bool = False,
        layers: int | None = None,
    ) -> None:
        self.training, self.cuda, self.mode = copy.copy(training), cuda, phantom_mode()
        base = phantom_base(
            model,
            self.mode,
            scalar=False,
            trust_remote_code=training.trust_remote_code,
            layers=layers,
        )
        self.vocabulary = int(base.get_input_embeddings().weight.shape[0])
        self.base_bytes = stored_bytes(base)
        self.roles = Roles(base, {})
        with undisturbed(), made_in(self.mode):
            policy = adapter_config(model, base, parent)
            judges = [adapter_config(model, base, run) for run in reward_model]
            attach_shapes(
                self.roles,
                policy,
                judges or [policy],
                reference=parent is not None if reference is None else reference,
                value=training.value_role,
            )
        assert self.roles.model is not None
        disable_dropout_in_model(self.roles.model)
        if training.gradient_checkpointing:
            self.roles.model.enable_input_require_grads()
            self.roles.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=training.gradient_checkpointing_kwargs or None
            )

    def peaks(self, prompt: int, batch: int, *, ptx: int = 0) -> list[Peak]:
        """Every phase's peak.

        Args:
            prompt: tokens of the longest prompt; completions are as long as `response_length`.
            batch: episodes per forward and backward pass of an update.
            ptx: tokens of the longest pretraining text, with `ptx_coef`.

        Raises: ConfigError for a prompt that leaves no room.
        """
        if prompt < 1:
            raise ConfigError("a prompt has no token")
        self.training.per_device_train_batch_size = batch  # rollouts grow with it
        with undisturbed(), as_on_cuda(self.cuda), self._quiet():
            found = [*self._generate(prompt), self._score(prompt)]
        with undisturbed(), as_on_cuda(self.cuda):
            found.append(self._update(prompt, batch, ptx if self.training.ptx_coef else 0))
        return found

    def _quiet(self) -> AbstractContextManager[None]:
        assert self.roles.model is not None
        self.roles.model.eval()
        kwargs = self.training.gradient_checkpointing_kwargs
        found: AbstractContextManager[None] = disable_gradient_checkpointing(
            self.roles.model, kwargs
        )
        return found

    def _live(self) -> LiveBytes:
        return LiveBytes(self.vocabulary, resident=not self.cuda)

    def _peak(self, phase: str, parts: dict[str, int]) -> Peak:
        held = weights(self.roles.model, self.base_bytes, str(self.training.optim))
        if self.training.ema_decay is not None:
            assert self.roles.model is not None
            named = self.roles.model.named_parameters()
            held["adapters"] += sum(
                p.numel() * p.element_size() for n, p in named if belongs_to(n, POLICY)
            )
        return Peak(phase, held | parts)

    @torch.no_grad()
    def _generate(self, prompt: int) -> list[Peak]:
        """Prompts read, and the last token of the longest completions, at full cache.

        Two phases: one grows with a layer's activations, the other with the layers.
        """
        args = self.training
        size: int = args.generation_batch_size or args.local_rollout_forward_batch_size
        rows = min(size, args.rollout_batch_size)
        live, made = self._live(), args.response_length - 1
        with live, self._autocast(), self.roles.merged(POLICY) as policy:
            adapted: Any = policy
            causal: Any = adapted.get_base_model()
            merged = live.total
            cache, head = growing_cache(causal), VocabularyHead.of(causal)
            seen = torch.ones((rows, prompt), dtype=torch.long)
            hidden = read(causal, torch.full((rows, prompt), TOKEN), seen, cache)
            read_first = split(live, kv_cache=_held(cache), merged_weights=merged)
            live.restart()
            if made > 0:
                for layer in cache.layers:
                    _fill(layer, made - 1)
                live.restart()
                seen = torch.ones((rows, prompt + made), dtype=torch.long)
                hidden = read(causal, torch.full((rows, 1), TOKEN), seen, cache)
            logprobs = (head.logits(hidden) / args.temperature).log_softmax(-1)
            draw(logprobs.exp())
            drawn = split(live, kv_cache=_held(cache), merged_weights=merged)
        del cache, hidden, logprobs
        return [self._peak("reading", read_first), self._peak("sampling", drawn)]

    @torch.no_grad()
    def _score(self, prompt: int) -> Peak:
        """The passes of reference, value, reward and, in low precision, policy."""
        args, roles = self.training, self.roles
        batch = self._batch(
            prompt, min(args.local_rollout_forward_batch_size, args.rollout_batch_size)
        )
        assert roles.model is not None
        known = roles.model.peft_config
        live = self._live()
        with live, self._autocast():
            with roles.using(REFERENCE if REFERENCE in known else None) as model:
                policy_pass(model, batch, temperature=args.temperature)
            if VALUE in known:
                head: Any = roles.heads[VALUE]
                with roles.using(VALUE) as model:
                    state_values(model, head, batch)
            for name in roles.rewards:
                judge: Any = roles.heads[name]
                with roles.using(name) as model:
                    scores(model, judge, batch)
        return self._peak("scoring", split(live))

    def _update(self, prompt: int, batch: int, ptx: int) -> Peak:
        """Policy, then value, then pretraining texts; each forward and backward."""
        args, roles = self.training, self.roles
        assert roles.model is not None
        roles.model.train()
        texts = [[TOKEN] * ptx] if ptx > 1 else []
        shape = self._batch(prompt, batch)
        accelerator: Any = _Alone(self._autocast)
        updater = Updater(roles, args, accelerator, pad_id=TOKEN, ptx=texts)
        names = ("logprobs", "values", "advantages", "returns")
        old = {name: torch.zeros(shape.mask.shape) for name in names}
        trained = [p for p in roles.model.parameters() if p.requires_grad]
        live = self._live()
        with live:
            for _ in range(2 if args.gradient_accumulation_steps > 1 else 1):
                live.restart()
                updater.policy_and_value_step(shape, old, int(shape.mask.sum()))
                if texts:
                    updater.pretraining_step(0)
            gradients = live.alive_at_peak([p.grad for p in trained if p.grad is not None])
        for parameter in trained:
            parameter.grad = None
        return self._peak("update", split(live, gradients=gradients))

    def _batch(self, prompt: int, rows: int) -> Batch:
        completion = [TOKEN] * self.training.response_length
        return collate([[TOKEN] * prompt] * rows, [completion] * rows, TOKEN)

    def _autocast(self) -> AbstractContextManager[Any]:
        args = self.training
        if not (args.bf16 or args.fp16):
            return nullcontext()
        return torch.autocast("cpu", torch.bfloat16 if args.bf16 else torch.float16)


def attach_shapes(
    roles: Roles, policy: Any, judges: Sequence[Any], *, reference: bool, value: str
) -> None:
    """PPO's roles with new weights of the shapes that `attach_ppo_roles` would load.

    Args:
        roles: on a base.
        policy: the policy's PEFT config.
        judges: the reward models'.
        reference: whether the policy has a parent, and so a reference beside it.
        value: `value_role`.
    """
    size = roles.base.config.get_text_config().hidden_size

    def frozen(name: str, config: Any) -> None:
        roles.create(name, copy.deepcopy(config))
        assert roles.model is not None
        for key, parameter in roles.model.named_parameters():
            if belongs_to(key, name):
                parameter.requires_grad_(False)

    roles.create(POLICY, copy.deepcopy(policy))
    if reference:
        frozen(REFERENCE, policy)
    for number, config in enumerate(judges):
        name = REWARD if len(judges) == 1 else f"{REWARD}_{number}"
        frozen(name, config)
        roles.heads[name] = ScalarHead(size).requires_grad_(False)
    roles.add_value_head()
    if value != "head":
        roles.create(VALUE, copy.deepcopy(judges[0] if value == "adapter" else policy))


class _Alone:
    """As much of an Accelerator as an update needs."""

    def __init__(self, autocast: Any) -> None:
        self.autocast = autocast

    def backward(self, loss: Tensor) -> None:
        """As accelerate's, on one device."""
        loss.backward()  # type: ignore[no-untyped-call]


def _fill(layer: Any, tokens: int) -> None:
    """A layer of the cache after some more tokens, when the next one will find no room."""
    if getattr(layer, "keys", None) is None:
        return
    rows, heads, _, size = layer.keys.shape
    layer.update(*(old.new_empty(rows, heads, tokens, size) for old in (layer.keys, layer.values)))
    if isinstance(layer, GrowingLayer):
        layer.keys, layer.values, layer._room = layer.keys.clone(), layer.values.clone(), None


def _held(cache: Any) -> int:
    """Bytes of a cache."""
    return sum(_cache_bytes(layer) for layer in cache.layers)


def _cache_bytes(layer: Any) -> int:
    room = getattr(layer, "_room", None)
    tensors = (
        room if room is not None else (getattr(layer, "keys", None), getattr(layer, "values", None))
    )
    return sum(t.untyped_storage().nbytes() for t in tensors if t is not None)
