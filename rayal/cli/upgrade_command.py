"""The command ``rayal serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Serve configuration, YAML.")
    ] = None,
    storage: Annotated[Path | None, typer.Option(help="Storage root.")] = None,
    database: Annotated[
        str | None, typer.Option(help="postgresql+psycopg://…; default SQLite in the storage.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default 8000.", min=1, max=65535)] = None,
    address: Annotated[
        str, typer.Option(help="Ray cluster: local (one for this service), auto, or HOST:PORT.")
    ] = "local",
    token_file: Annotated[
        Path | None, typer.Option(help="File for the first token, instead of the terminal.")
    ] = None,
    demo: Annotated[bool, typer.Option(help="Make a project on digits to try.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check the settings.")] = False,
) -> None:
    """Serve the HTTP API: items leased, labels taken, rounds trained in the background."""
    from rayal.cli.serve import run_service, serve_settings

    given = {"host": host, "port": port}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings, where = serve_settings(config, storage, database, overrides, applied=not check)
    if check:
        typer.echo(f"the settings fit; the service would listen on {where['host']}:{where['port']}")
        return
    run_service(settings, where, address=address, demo=demo, token_file=token_file)
