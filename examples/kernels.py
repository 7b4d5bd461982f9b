"""The selection kernels on your own arrays: no project, no cluster.

Run: python examples/kernels.py
"""

from __future__ import annotations

import numpy as np

import rayal
from rayal.selection import k_center, kmeans_plus_plus


def main() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(5_000, 64)).astype(np.float32)
    probs = rng.dirichlet(np.full(10, 0.3), size=5_000).astype(np.float32)

    print("k-center:", k_center(embeddings, 5, seed=0).tolist())

    residuals = probs.copy()
    residuals[np.arange(5_000), probs.argmax(axis=1)] -= 1
    print("k-means++ on residual x embedding:", kmeans_plus_plus(residuals, embeddings, 5).tolist())

    columns = {"log_probs": np.log(probs), "embedding": embeddings}
    ids = [f"image-{i}.png" for i in range(5_000)]
    for name in ("margin", "badge"):
        picks = rayal.select(name, columns, k=5, ids=ids, seed=0)
        print(f"{name}:", ", ".join(picks.ids))


if __name__ == "__main__":
    main()
