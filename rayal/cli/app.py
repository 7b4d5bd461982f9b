"""The ``rayal`` command: each command calls one function.

Exit codes: 0 done, 1 a fault of the program, 2 input that does not fit, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rayal import __version__
from rayal.cli.remote import remote
from rayal.errors import RayalError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which items should be labeled next? Deep active learning with durable rounds.",
)
app.add_typer(remote, name="remote")
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Where = Annotated[str, typer.Argument(metavar="ROOT#PROJECT", help="Storage root and project.")]
Root = Annotated[Path, typer.Argument(metavar="ROOT", help="Storage root.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print each stage's seconds.")]


def main() -> None:
    """Run the command line; RayalError becomes one sentence and exit code 2."""
    try:
        app(standalone_mode=True)
    except RayalError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except OSError as error:  # a path that cannot be read or written
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except SystemExit as ended:
        if ended.code == 130:  # Ctrl-C
            sys.stderr.write("stopped; the same command goes on where this one ended\n")
        raise


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rayal {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("rayal-demo"),
    verbose: Verbose = False,
) -> None:
    """Compare random, margin and badge on scikit-learn's digits, 3 seeds, in about a minute."""
    from rayal.cli.local import COUNTS, INTRODUCTION, NEXT, a_pick, demo_settings, run_settings

    typer.echo(INTRODUCTION)
    outcome = run_settings(demo_settings(out), out, verbose=verbose, at=COUNTS)
    typer.echo(NEXT.format(out=outcome.folder, item=a_pick(outcome.folder, "badge-s0")))


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML settings.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the outputs.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where the work runs: local, ray or auto.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: local (one for this run), auto, or HOST:PORT; means ray."),
    ] = None,
    no_plan: Annotated[
        bool, typer.Option("--no-plan", help="Run even what would not fit the memory.")
    ] = False,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run strategies x seeds, or go on where the same command stopped."""
    from rayal.cli.local import outcome_json, run_settings, settings_of

    overrides = [*(set_ or ()), *(["plan=false"] if no_plan else [])]
    settings = settings_of(config, overrides, executor, address)
    outcome = run_settings(settings, out, verbose=verbose, quiet=json_)
    if json_:
        typer.echo(json.dumps(outcome_json(outcome), indent=2))


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML settings.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Items, whatever there are.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Columns of the embedding.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Number of classes.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Workers of a cluster.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of each worker, or of the one process: 16GB.")
    ] = None,
    rates: Annotated[Path | None, typer.Option(help="JSON of `rayal bench`.")] = None,
    json_: Json = False,
) -> None:
    """Say what a run would need, memory, disk and seconds, and refuse what would not fit."""
    from rayal.cli.local import plan_settings, settings_of
    from rayal.planning.pools import WhatIf
    from rayal.planning.runs import parse_size

    settings = settings_of(config, set_ or (), None, None)
    room = None if memory is None else parse_size(memory)
    plan_settings(settings, WhatIf(rows, width, classes, shards, room), rates, as_json=json_)


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="Built-in name, folder or file.")],
    root: Annotated[Path, typer.Option("--storage", help="Storage root.")],
    name: Annotated[str | None, typer.Option(help="Name of the pool.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the settings' pool section."),
    ] = None,
    json_: Json = False,
) -> None:
    """Turn images, a table, texts or arrays into a pool; again later, add what is new."""
    from rayal.cli.console import show
    from rayal.cli.local import ingest_source

    show(ingest_source(source, root, name, set_ or (), line=not json_), as_json=json_)


@app.command()
def status(
    root: Annotated[str, typer.Argument(metavar="ROOT[#PROJECT]")], json_: Json = False
) -> None:
    """Show pools, projects and their rounds."""
    from rayal.cli.console import show
    from rayal.cli.local import status_of

    show(status_of(root, lines=not json_), as_json=json_)


@app.command()
def why(
    where: Where, item: Annotated[str, typer.Argument(metavar="ITEM")], json_: Json = False
) -> None:
    """Show why an item was picked, or not: scores, ranks, models, seed, leases, labels."""
    from rayal.cli.console import show
    from rayal.cli.local import why_of

    show(why_of(where, item), as_json=json_)


@app.command()
def label(
    where: Where,
    labels: Annotated[Path, typer.Argument(metavar="LABELS.csv", help="Columns id and label.")],
    annotator: Annotated[str, typer.Option(help="Who labeled.")] = "import",
    json_: Json = False,
) -> None:
    """Import labels; every line is checked before one is written."""
    from rayal.cli.console import show
    from rayal.cli.local import label_from

    show(label_from(where, labels, annotator), as_json=json_)


@app.command()
def export(
    where: Where,
    out: Annotated[Path | None, typer.Option(help="CSV file; default standard output.")] = None,
    what: Annotated[str, typer.Option(help="labels (resolved), history, or offered.")] = "labels",
) -> None:
    """Write labels, their whole history, or the items that want a label."""
    from rayal.cli.local import export_csv

    text = export_csv(where, what)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@app.command("select")
def select_command(
    columns: Annotated[Path, typer.Argument(help="Parquet or .npz file of columns.")],
    strategy: Annotated[str, typer.Option(help="Registered strategy.")],
    k: Annotated[int, typer.Option("-k", help="Items to choose.")],
    labeled: Annotated[Path | None, typer.Option(help="The same columns of labeled rows.")] = None,
    id_: Annotated[str, typer.Option("--id", help="Column of the ids.")] = "id",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A hyperparameter.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Query seed.")] = 0,
    json_: Json = False,
) -> None:
    """Choose items by a strategy from columns computed anywhere; no project needed."""
    from rayal.cli.console import show
    from rayal.cli.local import select_from

    rows: dict[str, Any] = {"labeled": labeled, "id": id_, "seed": seed, "params": set_ or ()}
    show(select_from(columns, strategy, k, **rows), as_json=json_)


@app.command("strategies")
def strategies_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None, json_: Json = False
) -> None:
    """List strategies, learners and networks; with a NAME, all that is stated of it."""
    from rayal.cli.local import list_registry

    list_registry(name, as_json=json_)


@app.command()
def gc(
    root: Root,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
    json_: Json = False,
) -> None:
    """Remove files that no ledger row commits, and what each project's `keep` lets go."""
    from rayal.cli.console import show
    from rayal.cli.local import collect

    show(collect(root, dry_run=dry_run), as_json=json_)


@app.command("bench")
def bench_command(
    quick: Annotated[bool, typer.Option(help="Smaller arrays, a few minutes.")] = False,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where the figures go.")
    ] = None,
    gpu: Annotated[
        bool, typer.Option(help="List the rows of a GPU too; none runs there yet.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A row, the start of its name, or a pattern with *."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed runs of each contender.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the arrays.")] = 0,
    strict: Annotated[
        bool, typer.Option(help="Exit with 1 if a row is below its bar or was not run.")
    ] = False,
) -> None:
    """Time the kernels and the scanner beside their peers and the machine's floors."""
    from rayal.bench.command import bench

    options: dict[str, Any] = {"quick": quick, "gpu": gpu, "repeats": repeats, "seed": seed}
    _, short = bench(only or (), json_file=json_, **options)
    if strict and short:
        raise typer.Exit(1)


@app.command()
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

    flags = {"host": host, "port": port}
    overrides = {name: value for name, value in flags.items() if value is not None}
    settings, where = serve_settings(config, storage, database, overrides, applied=not check)
    if check:
        typer.echo(f"the settings fit; the service would listen on {where['host']}:{where['port']}")
        return
    run_service(settings, where, address=address, demo=demo, token_file=token_file)


@app.command()
def upgrade(
    root: Root,
    backup: Annotated[
        Path | None, typer.Option(help="File or folder of the copy made before; default ROOT.")
    ] = None,
    backed_up: Annotated[
        bool, typer.Option("--backed-up", help="There is a backup: make none.")
    ] = False,
    json_: Json = False,
) -> None:
    """Bring the ledger of an older rayal to this one's tables, after a backup of it."""
    from rayal.cli.console import show
    from rayal.ledger.upgrade import upgrade as upgrade_ledger

    done = upgrade_ledger(root, backup=backup, backed_up=backed_up)
    record = {"ledger": done.ledger, "schema version": done.version}
    if done.found is None:
        show({**record, "upgrade": "nothing to do"}, as_json=json_)
    else:
        how = {"upgrade": f"from {done.found}", "backup": done.backup or "said to be made already"}
        show({**record, **how}, as_json=json_)


if __name__ == "__main__":
    main()
