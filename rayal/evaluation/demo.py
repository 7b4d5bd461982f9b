"""The demonstration: three strategies on scikit-learn's digits, from the package registry alone."""

from __future__ import annotations

from pathlib import Path

from rayal.settings.run import Settings, load

INTRODUCTION = """\
rayal demo: 1,797 images of digits, of which 400 are kept for testing.
A small network starts from 50 labels and asks for 25 more, ten times, up to 300.
random asks for anything, margin for what the network is unsure of, badge for what is both
uncertain and diverse. Each runs with three seeds; a simulated annotator answers.
"""
COUNTS = (50, 100, 200, 300)  # labels at which the table shows accuracy
NEXT = """
What to try next:
  rayal strategies                                    # what else there is
  rayal status {out}                           # pools, projects, rounds
  rayal why '{out}#badge-s0' {item}      # why an item was picked
  rayal run examples/fashion_mnist.yaml               # 60,000 images
"""


def demo_settings(out: Path) -> Settings:
    """Return the demonstration's settings; its storage is ``out``."""
    return load(
        {
            "pool": {"source": "digits"},
            "task": {"kind": "image"},
            "model": {"network": "mlp", "params": {"widths": [128, 128], "dropout": 0.2}},
            "learner": {"name": "supervised", "steps": 150, "batch": 32},
            "strategies": ["random", "margin", "badge"],
            "initial": {"count": 50},
            "rounds": 10,
            "batch": 25,
            "seeds": [0, 1, 2],
            "storage": str(out),
        }
    )
