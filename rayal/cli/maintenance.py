"""The command ``rayal upgrade``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def upgrade(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Storage root.")],
    backup: Annotated[
        Path | None, typer.Option(help="File or folder of the copy made before; default ROOT.")
    ] = None,
    backed_up: Annotated[
        bool, typer.Option("--backed-up", help="There is a backup: make none.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Bring the ledger of an older rayal to this one's tables, after a backup of it."""
    from rayal.cli.display import show
    from rayal.ledger.upgrade import upgrade as upgrade_ledger

    done = upgrade_ledger(root, backup=backup, backed_up=backed_up)
    told = {"ledger": done.ledger, "schema version": done.version}
    if done.found is None:
        show({**told, "upgrade": "nothing to do"}, as_json=json_)
    else:
        how = {"upgrade": f"from {done.found}", "backup": done.backup or "said to be made already"}
        show({**told, **how}, as_json=json_)
