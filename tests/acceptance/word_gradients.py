"""Prints the cost of gradient lengths beside one plain forward pass, one thread, 64 texts a batch.

    python tests/acceptance/word_gradients.py

Three classes, KimCNN of 3 x 64 filters over 128 columns, 40 tokens. Exits with 1 where the word
gradients cost more than 5 forward passes. The shortest of many times counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from rayal.labels import ClassLabel
from rayal.models import Committee, build_network
from rayal.signals import Forward, GradientLength, LogProbs, Signal, WordGradientLength, compute
from rayal.tasks import TextTask, Vocabulary

ROWS, TOKENS, LENGTH, TRIES, BAR = 64, 8000, 40, 60, 5.0


def committee() -> Committee:
    words = Vocabulary.imagined(TOKENS)
    net = build_network(
        "kim_cnn", {}, input_shape=(LENGTH,), n_outputs=3, seed=0, vocabulary=words
    ).eval()
    task = TextTask(ClassLabel(("a", "b", "c")), LENGTH, words)
    made = Committee((torch.nn.ModuleDict({"task": net}),), task, {}, "", 0, 0)
    made.move("cpu")
    return made


def main() -> int:
    torch.set_num_threads(1)
    asked = committee()
    x = torch.randint(2, TOKENS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).float()
    ids, keys = [str(i) for i in range(ROWS)], np.arange(ROWS, dtype=np.uint64)

    def ask(signal: Signal) -> Callable[[], object]:
        return lambda: compute([signal], Forward(asked, x, ids, keys))

    works = {
        "forward": ask(LogProbs()),
        "egl_word": ask(WordGradientLength()),
        "egl": ask(GradientLength()),
    }
    best = dict.fromkeys(works, float("inf"))
    for _ in range(TRIES):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - started)
    for name, seconds in best.items():
        ratio = seconds / best["forward"]
        line = f"{name:10} {1e3 * seconds:8.2f} ms  {ratio:6.2f} forward passes\n"
        sys.stdout.write(line)
    return int(best["egl_word"] > BAR * best["forward"])


if __name__ == "__main__":
    sys.exit(main())
