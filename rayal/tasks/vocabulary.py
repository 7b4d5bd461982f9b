"""A tokeniser as a frozen value: its tokens, and the number of texts that contain each.

The tokenisers are those of Hugging Face's ``tokenizers``: WordPiece (Schuster & Nakajima, ICASSP
2012) and byte-level BPE (Sennrich, Haddow & Birch, ACL 2016).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.errors import SettingsError, nearest
from rayal.types import digest

# a model's threads are a setting of the run; the tokeniser would take all cores beside them
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

KINDS = ("wordpiece", "bpe")
PAD, UNKNOWN = "[PAD]", "[UNK]"
_INSIDE = "##"  # mark of a piece inside of a word
_CHUNK = 4096  # texts encoded at once


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """A tokeniser with the number of texts that each token stands in.

    Args:
        stored: JSON with ``model`` (that of a ``tokenizer.json``; null where a plan only imagines
            one), ``size`` (tokens, V), ``pad``, ``specials`` (ids of tokens that are no words),
            ``documents`` (texts counted) and ``frequencies`` (those with each token, V numbers).
    """

    stored: str

    @property
    def size(self) -> int:
        """Tokens, V: ids are 0 to V - 1."""
        return int(_held(self.stored)["size"])

    @property
    def pad(self) -> int:
        """The id that fills a text up to the length of others."""
        return int(_held(self.stored)["pad"])

    @property
    def specials(self) -> tuple[int, ...]:
        """Ids of tokens that are no words: padding, unknown, begin and end of a text."""
        return tuple(_held(self.stored)["specials"])

    @property
    def hash(self) -> str:
        """Digest of everything above."""
        return digest(self.stored)

    def idf(self) -> Tensor:
        """Return the inverse document frequencies, float32 ``[V]``; 0 for tokens that are no words.

        ln((1 + n) / (1 + n_t)) + 1, the smooth form: a token that stands in no text has a finite
        weight.
        """
        contents = _held(self.stored)
        counts = torch.tensor(contents["frequencies"], dtype=torch.float64)
        weights: Tensor = ((1.0 + contents["documents"]) / (1.0 + counts)).log() + 1.0
        weights[list(self.specials)] = 0.0
        return weights.float()

    def encode(self, texts: Sequence[str], length: int) -> npt.NDArray[np.int64]:
        """Return token ids ``[N, length]``; longer texts are cut, shorter ones padded behind."""
        tokenizer = _reader(self.stored, length)
        if not texts:
            return np.zeros((0, length), np.int64)
        return np.array([row.ids for row in tokenizer.encode_batch_fast(list(texts))], np.int64)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ids."""
        tokenizer = _reader(self.stored, 1)
        return [tokenizer.id_to_token(i) for i in ids]

    def __repr__(self) -> str:
        return f"Vocabulary({self.size} tokens, {self.hash})"

    @classmethod
    def imagined(cls, size: int) -> Self:
        """Return a vocabulary that encodes nothing: its size is what a plan needs."""
        contents = {"model": None, "size": size, "pad": 0, "specials": [0, 1], "documents": 0}
        return cls(json.dumps({**contents, "frequencies": [0] * size}))

    @classmethod
    def trained(cls, texts: Iterable[str], *, kind: str, size: int, lowercase: bool) -> Self:
        """Train a tokeniser; the order of the texts does not matter.

        Args:
            texts: read once.
            kind: wordpiece (of words between white space and punctuation; each Chinese character
                is a word) | bpe (of bytes, so that no text has unknown tokens).
            size: tokens at most.
            lowercase: whether texts are lowered first.

        Raises:
            SettingsError: there is no such kind, or room for no word.
        """
        if kind not in KINDS:
            raise SettingsError(
                f"task.tokenizer: {kind!r} does not exist; {nearest(kind, KINDS)}; or give the "
                "path of a tokenizer.json"
            )
        least = 300 if kind == "bpe" else 16  # 256 bytes are tokens of their own
        if size < least:
            raise SettingsError(f"task.vocabulary is {size}; a {kind} needs at least {least}")
        documents = list(texts)
        train = _byte_pairs if kind == "bpe" else _word_pieces
        return cls.counted(train(documents, size, lowercase), documents)

    @classmethod
    def counted(cls, model: str, texts: Iterable[str]) -> Self:
        """Return a tokeniser that is there, with frequencies of its tokens in texts.

        Args:
            model: contents of a ``tokenizer.json``.
            texts: read once; counted whole, however long they are.

        Raises:
            SettingsError: it is no tokeniser, or has no token to pad with.
        """
        tokenizer = _loaded(model)
        padding = tokenizer.padding
        tokenizer.no_truncation()
        tokenizer.no_padding()
        size = tokenizer.get_vocab_size()
        frequencies, documents = np.zeros(size, np.int64), 0
        for chunk in _chunks(texts):
            documents += len(chunk)
            for encoded in tokenizer.encode_batch_fast(chunk):
                frequencies[list(set(encoded.ids))] += 1
        contents = {
            "model": model,
            "size": size,
            "pad": _pad_of(tokenizer, padding),
            "specials": sorted(
                i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special
            ),
            "documents": documents,
            "frequencies": frequencies.tolist(),
        }
        return cls(json.dumps(contents, ensure_ascii=False))


def _byte_pairs(texts: Sequence[str], size: int, lowercase: bool) -> str:
    """Return a BPE of bytes as JSON."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    lower = [normalizers.Lowercase()] if lowercase else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *lower])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return str(tokenizer.to_str())


def _word_pieces(texts: Sequence[str], size: int, lowercase: bool) -> str:
    """Return a WordPiece as JSON.

    The trainer numbers pieces inside of words in the order of a hash table, another one in each
    process, and breaks ties by these numbers. So letters inside of words are given to it, sorted,
    among the tokens that it numbers first; they are no special tokens afterwards.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, inside = _letters(texts, tokenizer, (size - 2) // 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[PAD, UNKNOWN, *(f"{_INSIDE}{letter}" for letter in inside)],
        initial_alphabet=first,
        limit_alphabet=len(first),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    model = json.loads(tokenizer.to_str())
    model["added_tokens"] = [t for t in model["added_tokens"] if t["content"] in (PAD, UNKNOWN)]
    return json.dumps(model, ensure_ascii=False)


def _letters(texts: Sequence[str], tokenizer: Any, most: int) -> tuple[list[str], list[str]]:
    """Return the most frequent letters, sorted, and those of them that stand inside of words."""
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    kept = sorted(letters, key=lambda letter: (-letters[letter], letter))[:most]
    inside = {letter for word in words for letter in word[1:]}
    return sorted(kept), sorted(inside & set(kept))


def _loaded(model: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(model)
    except Exception as error:  # the parser raises Exception itself
        raise SettingsError(
            f"task.tokenizer is no tokeniser of the package tokenizers ({error}); give its "
            f"tokenizer.json, or one of {', '.join(KINDS)}"
        ) from error


def _pad_of(tokenizer: Any, padding: dict[str, Any] | None) -> int:
    if padding is not None:
        return int(padding["pad_id"])
    candidates = (tokenizer.token_to_id(token) for token in (PAD, "<pad>", "<|pad|>"))
    pad = next((i for i in candidates if i is not None), None)
    if pad is None:
        raise SettingsError(
            f"task.tokenizer has no token to pad with ({PAD} or <pad>); add one, and save it again"
        )
    return int(pad)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


@lru_cache(maxsize=8)
def _held(stored: str) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(stored)
    return contents


@lru_cache(maxsize=8)
def _reader(stored: str, length: int) -> Any:
    contents = _held(stored)
    tokenizer = _loaded(contents["model"])
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=contents["pad"])
    return tokenizer
