"""Frozen sentence encoders: token ids to one vector for each text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from rayal.errors import NeedsError, SettingsError

MINILM = {  # sentence-transformers/all-MiniLM-L6-v2
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}
NOT_LOADED = ("embeddings.position_ids",)  # a constant that older files hold


class SentenceEncoder(nn.Module):
    """The mean of a transformer's word vectors, of length 1: ids ``[N, T]`` to ``[N, D]``.

    Source: Reimers & Gurevych, EMNLP 2019, section 3 (mean pooling); padding does not count.

    Args:
        network: takes ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``.
        pad: the id of padding.
    """

    def __init__(self, network: nn.Module, pad: int = 0) -> None:
        super().__init__()
        self.network = network
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings."""
        ids = x.long()
        mask = ids != self.pad  # [N, T]
        hidden = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask.to(hidden.dtype)[:, :, None]
        total = (hidden * weights).sum(dim=1)
        return F.normalize(total / weights.sum(dim=1).clamp_min(1.0), dim=1)


def minilm(params: Mapping[str, Any]) -> SentenceEncoder:
    """Return all-MiniLM-L6-v2 without its weights.

    Raises:
        NeedsError: the package transformers is not installed.
        SettingsError: it was given parameters.
    """
    if params:
        raise SettingsError(
            f"backbone 'minilm' takes no params, got {dict(params)}; leave them out"
        )
    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        raise NeedsError(
            "backbone 'minilm' needs the package transformers; install it: pip install "
            "'rayal[text]'"
        ) from None
    # attention as plain products: the same bits for a row in any batch
    return SentenceEncoder(BertModel(BertConfig(**MINILM, attn_implementation="eager")))


def check_tokens(encoder: nn.Module, *, length: int, tokens: int | None) -> None:
    """Raise SettingsError where an encoder does not know the tokeniser, or the length."""
    network = encoder.network if isinstance(encoder, SentenceEncoder) else encoder
    config = getattr(network, "config", None)
    if config is None:  # an encoder of the user's own
        return
    if tokens is not None and tokens != config.vocab_size:
        raise SettingsError(
            f"the encoder knows {config.vocab_size} tokens and the tokeniser has {tokens}; set "
            "task.tokenizer to the tokenizer.json that came with the encoder's weights"
        )
    if length > config.max_position_embeddings:
        raise SettingsError(
            f"task.length is {length}, the encoder reads {config.max_position_embeddings} tokens "
            "at most"
        )
