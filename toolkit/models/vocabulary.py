"""Checks that a base has an embedding for every token that its tokenizer can write."""

from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embeddings: int, name: str) -> None:
    """Check that every token that a text or a chat can contain has an embedding.

    A special token may lack an embedding if the chat template does not contain it and it is not the EOS,
    BOS, pad or unknown token. An example is the image token of Gemma 3, which its text models cannot read.

    Args:
        embeddings: rows of the base's input embeddings.
        name: the base.

    Raises: CheckpointError naming both sizes and a token.
    """
    beyond = {token: id for token, id in tokenizer.get_vocab().items() if id >= embeddings}
    used = {
        tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token
    }  # fmt: skip
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    template = str(tokenizer.chat_template)
    bad = [t for t in beyond if t in used or t not in special or t in template]
    if bad:
        first = min(bad, key=beyond.__getitem__)
        raise CheckpointError(
            f"{name}: the tokenizer has {max(beyond.values()) + 1} tokens, but the base has "
            f"{embeddings} embeddings, none for {first!r} ({beyond[first]}); use the base's own "
            "tokenizer, or resize the base's embeddings and train them"
        )
