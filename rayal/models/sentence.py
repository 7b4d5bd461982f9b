"""Sentence encoders, frozen or fine-tuned: token ids to one vector for each text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rayal.errors import NeedsError, SettingsError
from rayal.models.base import ENCODER, TaskNet
from rayal.models.text import VocabularyLike
from rayal.models.weights import RANDOM, load_weights
from rayal.registry import networks

MINILM = {  # sentence-transformers/all-MiniLM-L6-v2
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}
NOT_LOADED = ("embeddings.position_ids",)  # a constant that older files hold
POOLER = "pooler."  # weights behind the first token's vector, which the mean does not use


class SentenceEncoder(nn.Module):
    """The mean of a transformer's word vectors: ids ``[N, T]`` to ``[N, D]``.

    Source: Reimers & Gurevych, EMNLP 2019, section 3 (mean pooling); padding does not count.

    Args:
        network: takes ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``.
        pad: the id of padding.
        unit: whether the mean is brought to length 1, as for comparing texts.
    """

    def __init__(self, network: nn.Module, pad: int = 0, *, unit: bool = True) -> None:
        super().__init__()
        self.network = network
        self.pad = pad
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings."""
        ids = x.long()
        mask = ids != self.pad  # [N, T]
        hidden = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask.to(hidden.dtype)[:, :, None]
        total = (hidden * weights).sum(dim=1)
        mean: Tensor = total / weights.sum(dim=1).clamp_min(1.0)
        return F.normalize(mean, dim=1) if self.unit else mean


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
    return SentenceEncoder(_transformer(MINILM))


def _transformer(sizes: Mapping[str, Any], *, pooler: bool = True) -> nn.Module:
    """Return a BERT of these sizes with fresh weights."""
    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        raise NeedsError(
            "minilm needs the package transformers; install it: pip install 'rayal[text]'"
        ) from None
    # attention as plain products: the same bits for a row in any batch
    config = BertConfig(**sizes, attn_implementation="eager")
    network: nn.Module = BertModel(config, add_pooling_layer=pooler)
    return network


@networks.register("minilm")
def minilm_classifier(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    vocabulary: VocabularyLike,
    weights: str = RANDOM,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    encoder_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
) -> TaskNet:
    """Return the sentence encoder all-MiniLM-L6-v2, whose weights are trained on, with a head.

    The embedding is the mean of the word vectors (Reimers & Gurevych, EMNLP 2019, section 3), not
    brought to length 1; dropout and a linear layer follow, as Devlin et al., NAACL 2019, section
    4.1, fine-tune. The encoder has a learning rate of its own: ``learner.encoder_lr``.

    Args:
        input_shape: ``(T,)``, tokens of a row.
        n_outputs: columns of the logits.
        vocabulary: vocabulary of the task; published weights need their own ``tokenizer.json``.
        weights: local file of the published weights; random trains the network from scratch.
        dropout: dropout probability behind the mean.
        encoder_dropout: dropout probability inside the encoder; with 0, passes of MC dropout run it
            once.

    Raises:
        NeedsError: the package transformers is not installed.
        SettingsError: rows are too long, or weights do not fit the tokeniser or the network.
    """
    sizes: dict[str, Any] = {**MINILM, "pad_token_id": vocabulary.pad}
    if weights == RANDOM:
        sizes["vocab_size"] = vocabulary.size
    sizes |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), encoder_dropout)
    network = _transformer(sizes, pooler=False)
    if weights != RANDOM:
        load_weights(network, Path(weights), (*NOT_LOADED, POOLER))
    encoder = SentenceEncoder(network, vocabulary.pad, unit=False)
    check_tokens(encoder, length=input_shape[0], tokens=vocabulary.size)
    stages = {ENCODER: encoder, "dropout": nn.Dropout(dropout)}
    return TaskNet({**stages, "head": nn.Linear(int(sizes["hidden_size"]), n_outputs)})


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
