from __future__ import annotations

import json
import pickle

import forked
import numpy as np
import pyarrow as pa
import pytest
import torch

from rayal.errors import NeedsError, PoolError, SettingsError
from rayal.tasks import TextTask, Vocabulary, task_for, task_from_json

TEXTS = [
    "the film was good",
    "the film was bad, bad, bad",
    "Ein SCHÖNER Film",
    "这部电影很好",
    "映画はよかった",
    "фильм был хорош",
] * 3
LABELS = ("neg", "pos")


def trained(kind: str = "wordpiece", size: int = 320) -> Vocabulary:
    return Vocabulary.trained(TEXTS, kind=kind, size=size, lowercase=True)


def task(length: int = 16, words: Vocabulary | None = None) -> TextTask:
    made = task_for(
        {"kind": "text"}, kind="text", classes=LABELS, length=length, words=words or trained()
    )
    assert isinstance(made, TextTask)
    return made


def rows(texts: list[str]) -> pa.Table:
    ids = [f"t{i}" for i in range(len(texts))]
    return pa.table({"id": ids, "data": pa.array([t.encode() for t in texts], pa.binary())})


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_all_languages_are_encoded(kind: str) -> None:
    words = trained(kind)
    ids = words.encode(TEXTS, 40)
    assert ids.shape == (18, 40) and ids.max() < words.size <= 320
    unknown = {i for i in words.specials if i != words.pad}
    assert not unknown & set(ids.ravel().tolist())
    assert (ids != words.pad).sum(axis=1).min() >= 3
    assert set(words.tokens(words.specials)) == {"[PAD]", "[UNK]"}
    assert len({tuple(row) for row in ids[:6].tolist()}) == 6


def test_a_rows_ids_by_hand() -> None:
    """Whole words are tokens once there is room; the case does not matter."""
    words = trained()
    assert words.tokens(words.encode(["The FILM was good"], 6)[0]) == [
        "the", "film", "was", "good", "[PAD]", "[PAD]"
    ]  # fmt: skip
    assert words.tokens(words.encode(["the film was good"], 2)[0]) == ["the", "film"]
    assert words.encode([], 5).shape == (0, 5)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_knows_no_order(kind: str) -> None:
    shuffled = [TEXTS[i] for i in np.random.default_rng(0).permutation(len(TEXTS))]
    again = Vocabulary.trained(shuffled, kind=kind, size=320, lowercase=True)
    assert again == trained(kind)
    assert again.hash == trained(kind).hash


@pytest.mark.processes
def test_another_process_trains_the_same() -> None:
    code = (
        "import json, sys; from rayal.tasks import Vocabulary; "
        "print(Vocabulary.trained(json.loads(sys.argv[1]), kind='wordpiece', size=320, "
        "lowercase=True).hash)"
    )
    done = forked.run("-c", code, json.dumps(TEXTS))
    assert done.stdout.strip() == trained().hash


def test_document_frequencies_and_their_weights() -> None:
    """Each text counts once, however often a token stands in it."""
    words = trained()
    held = json.loads(words.stored)
    film, bad = words.encode(["film"], 1)[0, 0], words.encode(["bad"], 1)[0, 0]
    assert held["documents"] == 18
    assert (held["frequencies"][film], held["frequencies"][bad]) == (9, 3)
    weights = words.idf()
    assert weights[bad].item() == pytest.approx(np.log(19 / 4) + 1, rel=1e-6)
    assert weights[list(words.specials)].tolist() == [0.0, 0.0]


def test_rows_have_one_length_in_any_batch() -> None:
    made = task(7)
    whole = made.decode(rows(TEXTS))
    assert whole.shape == (18, 7) and whole.dtype == torch.float32
    single = torch.cat([made.decode(rows(TEXTS).slice(i, 1)) for i in range(18)])
    assert torch.equal(single, whole)
    assert made.decode(rows([])).shape == (0, 7)


def test_texts_are_not_scaled_and_have_no_views() -> None:
    made = task()
    x = made.decode(rows(TEXTS))
    assert made.fit(x) == {} and made.transform(x, {}) is x
    with pytest.raises(NeedsError, match="no augmented views"):
        made.augment(x, torch.Generator())
    with pytest.raises(NeedsError, match="no augmented views"):
        made.view(x, np.zeros(18, np.uint64), seed=0, view=0)
    with pytest.raises(NeedsError, match="0 labeled rows"):
        made.fit(x[:0])


def test_the_task_survives_json_and_pickle() -> None:
    made = task()
    assert task_from_json(json.loads(json.dumps(made.to_json()))) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert len(repr(made)) < 300  # the tokeniser is told by its hash


def test_bytes_of_another_encoding_are_named() -> None:
    broken = pa.table({"id": ["a", "b"], "data": pa.array([b"fine", b"\xff"], pa.binary())})
    with pytest.raises(PoolError, match="item 'b' is no UTF-8 text"):
        task().decode(broken)


def test_settings_that_do_not_fit() -> None:
    text, table = {"kind": "text"}, {"kind": "table", "features": ["a"]}
    with pytest.raises(SettingsError, match=r"task.size is no setting of texts"):
        task_for(text, kind=None, classes=LABELS, words=trained(), size=(3, 3))
    with pytest.raises(SettingsError, match=r"task.length is no setting of tables"):
        task_for(table, kind=None, classes=LABELS, length=3)
    with pytest.raises(SettingsError, match=r"task.kind is 'text' and the pool's rows are of kind"):
        task_for(table, kind="text", classes=LABELS)
    with pytest.raises(NeedsError, match="no tokeniser yet"):
        task_for(text, kind=None, classes=LABELS)
    with pytest.raises(SettingsError, match="'wordpeace' does not exist; did you mean 'wordpiece'"):
        Vocabulary.trained(TEXTS, kind="wordpeace", size=100, lowercase=True)
    with pytest.raises(SettingsError, match=r"task.vocabulary is 200; a bpe needs at least 300"):
        trained("bpe", 200)
    with pytest.raises(SettingsError, match="no tokeniser of the package tokenizers"):
        Vocabulary.counted("{}", [])


def test_an_imagined_vocabulary_has_a_size() -> None:
    words = Vocabulary.imagined(500)
    assert (words.size, words.pad, words.idf().shape) == (500, 0, (500,))
