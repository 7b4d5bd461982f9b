"""rayal answers one question about a large unlabeled pool: which items should be labeled next?

A project trains a model on what is labeled, runs it over the pool, chooses a batch by a published
strategy, hands the items to annotators, takes their labels, and goes round again.

```python
import rayal

picks = rayal.select("badge", {"log_probs": lp, "embedding": h}, k=100)   # anyone's arrays
project = rayal.Project.open("runs/mine", "margin")                       # durable rounds
batch = project.ask(20)
project.tell({lease.item: "cat" for lease in batch})
project.train()
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rayal.client import ApiError as ApiError
    from rayal.client import Client as Client
    from rayal.engine.project import Project as Project
    from rayal.errors import RayalError as RayalError
    from rayal.ledger import Ledger as Ledger
    from rayal.pool.reader import Pool as Pool
    from rayal.ray_executor.cluster import connect as connect
    from rayal.strategies import Strategy as Strategy
    from rayal.strategies import select as select
    from rayal.types import Selection as Selection

_PUBLIC = {
    "Pool": "rayal.pool.reader",
    "Project": "rayal.engine.project",
    "connect": "rayal.ray_executor.cluster",
    "Client": "rayal.client",
    "ApiError": "rayal.client",
    "Ledger": "rayal.ledger",
    "select": "rayal.strategies",
    "Strategy": "rayal.strategies",
    "Selection": "rayal.types",
    "RayalError": "rayal.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import rayal`` loads no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rayal' has no attribute {name!r}; it has {__all__}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
