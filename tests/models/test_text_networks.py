from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rayal.errors import SettingsError
from rayal.models import TaskNet, build_network
from rayal.models.base import pooled, tap_widths
from rayal.models.text import MaxOverTime, TfIdf, WordEmbedding
from rayal.tasks import Vocabulary

SENTENCES = (
    "the film was good",
    "the film was bad bad bad",
    "a very good plot and a very bad actor",
    "das war ein schöner Film",
    "这 部 电影 很 好",
    "good",
) * 4


@lru_cache
def vocabulary() -> Vocabulary:
    return Vocabulary.trained(SENTENCES, kind="wordpiece", size=60, lowercase=True)


def network(name: str = "kim_cnn", length: int = 12, **params: Any) -> TaskNet:
    return build_network(
        name, params, input_shape=(length,), n_outputs=3, seed=3, vocabulary=vocabulary()
    )


def texts(*sentences: str) -> Tensor:
    return torch.from_numpy(vocabulary().encode(sentences, 12)).float()


def test_kim_cnn_by_its_definition() -> None:
    """Windows of words, max over time, rectified: written out for every window."""
    net = network(width=6, filters=5).eval()
    x = texts(*SENTENCES[:6])
    words, windows = net.stages[0], net.stages[1]
    assert isinstance(words, WordEmbedding) and isinstance(windows, MaxOverTime)
    vectors = words.table.weight[x.long()]  # [N, T, E]
    features = []
    for h, layer in zip((3, 4, 5), windows.convolutions, strict=True):
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight = layer.weight[:, :, 0, :]
        made = [
            torch.einsum("nte,fet->nf", vectors[:, t : t + h], weight) + layer.bias
            for t in range(x.shape[1] - h + 1)
        ]
        features.append(F.relu(torch.stack(made)).amax(dim=0))
    expected = torch.cat(features, dim=1)
    torch.testing.assert_close(net.embed(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(x), net.head(expected), rtol=1e-5, atol=1e-6)


def test_taps_of_texts_are_means_over_time() -> None:
    net = network(width=6, filters=5).eval()
    x = texts(*SENTENCES[:4])
    words, windows = pooled(net.taps(x, ("words", "windows"))[1], ("words", "windows"))
    assert isinstance(net.stages[0], WordEmbedding)
    torch.testing.assert_close(words, net.stages[0].table.weight[x.long()].sum(dim=1) / 12)
    torch.testing.assert_close(windows, net.embed(x))
    assert tap_widths(net, net.tap_names, (12,)) == [6, 15]


def test_padding_is_zero_and_stays_zero() -> None:
    net = network(width=6, filters=5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(texts(*SENTENCES)).square().sum().backward()
        optimizer.step()
    assert net.word_embedding is not None
    assert (net.word_embedding.weight[vocabulary().pad] == 0).all()


def test_stages_and_embedding() -> None:
    net = network()
    assert net.stage_names == ("words", "windows", "dropout", "head")
    assert (net.embedding_width, net.stochastic_from, net.has_embedding) == (192, 2, True)
    assert network("tfidf_linear").word_embedding is None


def test_rows_of_any_batch_have_the_same_bits() -> None:
    x = texts(*(SENTENCES * 43)[:1024])
    for name in ("kim_cnn", "tfidf_linear"):
        net = network(name).eval()
        with torch.inference_mode():
            whole = net(x)
            for width in (64, 256):
                assert torch.equal(torch.cat([net(some) for some in torch.split(x, width)]), whole)


def test_tfidf_is_scikit_learns() -> None:
    x = texts(*SENTENCES[:6])
    ids = x.long().numpy()
    counts = np.stack([np.bincount(row, minlength=vocabulary().size) for row in ids])
    counts[:, list(vocabulary().specials)] = 0
    reference = TfidfTransformer(smooth_idf=True).fit(counts)
    features = TfIdf(torch.from_numpy(reference.idf_).float())
    features.idf[list(vocabulary().specials)] = 0.0
    expected = reference.transform(counts).toarray()
    np.testing.assert_allclose(features(x).numpy(), expected, rtol=1e-5, atol=1e-6)
    empty = torch.full((1, 12), float(vocabulary().pad))
    assert (network("tfidf_linear").embed(empty) == 0).all()


def test_networks_of_texts_and_of_others_are_not_mixed_up() -> None:
    with pytest.raises(
        SettingsError, match=r"'mlp' does not read token ids.*kim_cnn, minilm, tfidf"
    ):
        network("mlp")
    with pytest.raises(SettingsError, match=r"'kim_cnn' reads token ids.*text: COLUMN"):
        build_network("kim_cnn", {}, input_shape=(1, 8, 8), n_outputs=2, seed=0)
    with pytest.raises(SettingsError, match="window of 5 words does not fit rows of 4"):
        network(length=4)
    with pytest.raises(SettingsError, match="no parameter 'vocabulary'"):
        network(vocabulary=3)
