"""The sampling loop: one batch of prompts, prefilled once, from which rows leave as they end.

`generate` keeps every row until the longest is done. Completions of a policy differ much in
length, so most of its work would be on rows that have ended.
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache

LEAVE_AT = 0.125  # rows leave when this share of the batch has ended: each leaving copies the cache


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop: list[int],
    pad_id: int,
) -> list[list[int]]:
    """Completion ids for each prompt's ids, up to and with the first stop token.

    Draws from softmax(logits / temperature) with torch's global generator; 0 is greedy. No top-k
    and no top-p: what is sampled from must be what is scored.
    """
    device = next(model.parameters()).device
    found: list[list[int]] = [[] for _ in prompts]
    ids, attention = (t.to(device) for t in _pad_left(prompts, pad_id))
    positions = (attention.cumsum(-1) - 1).clamp_min(0)  # (B, P)
    cache = DynamicCache(config=model.config.get_text_config())  # type: ignore[union-attr,operator]
    stops = torch.tensor(stop, device=device)
    rows = torch.arange(len(prompts), device=device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # (B, V)
        token = _choose(logits.float(), temperature)  # (B,)
        for row, taken, live in zip(rows.tolist(), token.tolist(), going.tolist(), strict=True):
            if live:
                found[row].append(taken)
        going &= ~torch.isin(token, stops)
        left = int(going.sum())
        if left == 0:
            break
        positions = positions[:, -1:] + 1
        if left <= (1 - LEAVE_AT) * len(going):
            stay = going.nonzero().flatten()
            cache.batch_select_indices(stay)
            rows, token, going = rows[stay], token[stay], going[stay]
            attention, positions = attention[stay], positions[stay]
        ids = token.unsqueeze(1)
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
    return found


def _choose(logits: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1).squeeze(-1)


def _pad_left(prompts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention, `(B, P)`."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, attention
