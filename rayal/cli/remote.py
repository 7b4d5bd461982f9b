"""The commands ``rayal remote …``: what an annotator or a tool does over HTTP, from a shell."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayal.errors import LabelError, PoolError, RayalError, SettingsError
from rayal.labels import ClassLabel, label_kind

if TYPE_CHECKING:
    from rayal.client import Client


def line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with readable times and metrics, and nothing for what is not there."""
    line: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("_at"):
            line[name.removesuffix("_at")] = "" if value is None else _moment(value)
        elif name == "metrics":
            line |= _metrics(value)
        else:
            line[name] = "" if value is None else value
    return line


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _metrics(given: Mapping[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else f"{value:.4f}" for name, value in given.items()}


def lease_line(row: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return a lease: its item, what the model says of it, and where it can be seen."""
    said = row["suggestion"]
    return {
        "item": row["item"]["id"],
        "rank": row["rank"],
        "round": row["round"],
        "suggestion": "" if said is None else said["label"],
        "lease": row["lease_id"],
        "content": url + row["item"]["content"],
    }


def job_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job: what it is, how far it is, when it came, and why it failed."""
    progress = ", ".join(str(value) for value in row["progress"].values())
    shown = {name: row[name] for name in ("job", "project", "kind", "state")}
    asked = _moment(row["created_at"])
    return {**shown, "progress": progress, "asked": asked, "error": row["error"] or ""}


def round_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round: its stage, its labels, its model and metrics."""
    names = ("n", "stage", "wanted", "labeled", "labels", "model")
    failed = {} if row["error"] is None else {"error": row["error"]}
    return {**{name: row[name] for name in names}, **_metrics(row["metrics"]), **failed}


def prediction_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prediction: a class with its probability, or a number with its deviation."""
    shown = {"item": row["item"], "label": row["label"]}
    if row["probs"] is not None:
        return {**shown, "probability": f"{max(row['probs']):.4f}"}
    return {**shown, "mean": f"{row['mean']:.6g}", "deviation": f"{row['variance'] ** 0.5:.4g}"}


IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


def items_of(source: Path, id_: str, text: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a folder of images or a CSV file holds, as items to push.

    Args:
        source: the folder or file.
        id_: column of the ids.
        text: column of the texts; all columns but the ids are numbers where it is None.
    """
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGES):
            data = base64.b64encode(path.read_bytes()).decode()
            yield {"id": path.relative_to(source).as_posix(), "data": data}
    elif source.suffix == ".csv" and text is not None:
        for row in _table_rows(source, id_, text):
            yield {"id": row[id_], "text": row[text] or ""}
    elif source.suffix == ".csv":
        for number, row in enumerate(_table_rows(source, id_), start=2):
            yield {"id": row.pop(id_), "features": _numbers(row, f"{source}, line {number}")}
    else:
        raise PoolError(f"{source} is neither a folder of images, nor a .csv or .jsonl file")


def answers_of(path: Path) -> dict[str, str]:
    """Return the labels of a CSV file by item."""
    answers: dict[str, str] = {}
    for row in _table_rows(path, "id", "label"):
        if row["id"] in answers:
            raise LabelError(f"{path} labels item {row['id']!r} twice; give one label")
        answers[row["id"]] = row["label"]
    return answers


def answers_to(project: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return labels that were written as texts as a project wants them: its numbers as numbers."""
    kind = label_kind(dict(project["labels"]))
    if isinstance(kind, ClassLabel):
        return dict(texts)  # what is no class is named by the service, label by label
    return {item: kind.read(text, item) for item, text in texts.items()}


@contextmanager
def csv_reader(path: Path, refusal: type[RayalError]) -> Iterator[csv.DictReader[str]]:
    """Open a CSV file in UTF-8, which may begin with a byte order mark.

    Args:
        path: the file.
        refusal: the error to raise where the file is not UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield csv.DictReader(file)
    except UnicodeDecodeError as error:
        raise refusal(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _table_rows(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    with csv_reader(path, PoolError) as reader:
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise PoolError(f"{path} has no column {missing[0]!r}, but {reader.fieldnames}")
        yield from reader


def _numbers(row: Mapping[str, str], where: str) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in row.items()}
    except (TypeError, ValueError) as error:
        raise PoolError(f"{where}: {error}; features are numbers") from None


remote = typer.Typer(no_args_is_help=True, help="Work with a service over HTTP.")
tokens = typer.Typer(no_args_is_help=True, help="Access tokens of the service.")
remote.add_typer(tokens, name="token")

Url = Annotated[str, typer.Option("--url", envvar="RAYAL_URL", help="Of the service.")]
Token = Annotated[str | None, typer.Option("--token", envvar="RAYAL_TOKEN", help="Access token.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Name = Annotated[str, typer.Argument(metavar="PROJECT")]
Item = Annotated[str, typer.Argument(metavar="ITEM", help="Id of the item.")]
Annotator = Annotated[str, typer.Option(help="Who labels.")]
HERE = "http://127.0.0.1:8000"


@remote.command()
def projects(url: Url = HERE, token: Token = None, json_: Json = False) -> None:
    """List the projects that the token may see."""
    with _client(url, token) as client:
        _rows(list(client.projects()), json_)


@remote.command()
def create(
    settings: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The project's settings.")],
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Make a project, or find it there with the same settings."""
    from rayal.settings.yamlfile import read_mapping

    with _client(url, token) as client:
        _show(client.create_project(read_mapping(settings)), json_)


@remote.command()
def push(
    project: Name,
    source: Annotated[Path, typer.Argument(metavar="FOLDER|FILE", help="Images, .csv or .jsonl.")],
    id_: Annotated[str, typer.Option("--id", help="Column of the ids in a .csv file.")] = "id",
    text: Annotated[str | None, typer.Option(help="Column of texts in a .csv file.")] = None,
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Add the images of a folder, the rows or texts of a table, or the items of JSON lines.

    What is there already stays as it is.
    """
    with _client(url, token) as client:
        if source.suffix == ".jsonl" and source.is_file():
            pushed = client.push_file(project, source)
        else:
            pushed = client.push(project, items_of(source, id_, text))
        _show(pushed, json_)


@remote.command()
def lease(
    project: Name,
    annotator: Annotator = "me",
    count: Annotated[int, typer.Option(min=1, max=100, help="Most items.")] = 1,
    ttl: Annotated[float | None, typer.Option(help="Seconds until a lease expires.")] = None,
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Hold the next items that want a label; those held already come first."""
    with _client(url, token) as client:
        answer = client.lease_or_reason(project, annotator, count, ttl=ttl)
        if json_ or not answer["leases"]:
            _show(answer, json_)
            return
        _show([lease_line(row, client.url) for row in answer["leases"]], json_)


@remote.command()
def label(
    project: Name,
    item: Annotated[str | None, typer.Argument(metavar="[ITEM", help="Id of the item.")] = None,
    value: Annotated[str | None, typer.Argument(metavar="LABEL]", help="Its label.")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="LABELS.csv", help="Columns id and label.")
    ] = None,
    annotator: Annotator = "me",
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Label an item, or all items of a CSV file; a label that does not fit is named."""
    texts: dict[str, str] = {}
    if from_ is not None and item is None:
        texts = answers_of(from_)
    elif from_ is None and item is not None and value is not None:
        texts = {item: value}
    else:
        raise SettingsError(
            "say which item has which label (rayal remote label PROJECT ITEM LABEL), or give "
            "--from LABELS.csv with the columns id and label"
        )
    with _client(url, token) as client:
        answers = answers_to(client.project(project), texts)
        outcomes = client.label(project, annotator, answers)
    _show(outcomes, json_)
    refused = sum(row["status"] == "rejected" for row in outcomes)
    if refused:
        raise LabelError(f"{refused} of {len(outcomes)} labels were rejected; detail says why")


@remote.command()
def skip(
    project: Name,
    item: Item,
    reason: Annotated[str | None, typer.Option(help="Why it cannot be labeled.")] = None,
    annotator: Annotator = "me",
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Say that an annotator cannot label an item."""
    with _client(url, token) as client:
        _show(client.skip(project, annotator, item, reason=reason), json_)


@remote.command()
def rounds(project: Name, url: Url = HERE, token: Token = None, json_: Json = False) -> None:
    """Show the rounds: stage, labels, metrics."""
    with _client(url, token) as client:
        rows = client.rounds(project)
    _show(rows if json_ else [round_line(row) for row in rows], json_)


@remote.command()
def close(
    project: Name,
    reason: Annotated[str | None, typer.Option(help="Kept in the history.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until the next batch is offered.")] = False,
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Begin the next round with the labels there are."""
    with _client(url, token) as client:
        job = client.close_round(project, reason=reason)
        _show(client.wait(job["job"]) if wait else job, json_)


@remote.command()
def status(project: Name, url: Url = HERE, token: Token = None, json_: Json = False) -> None:
    """Show a project: its settings, items by state, rounds, and unfinished job."""
    with _client(url, token) as client:
        info, rows = client.project(project), client.rounds(project)
    lines: Any = rows if json_ else [round_line(row) for row in rows]
    _show({**info, "rounds": lines}, json_)


@remote.command()
def why(
    project: Name, item: Item, url: Url = HERE, token: Token = None, json_: Json = False
) -> None:
    """Show why an item was picked, or not: scores, ranks, models, seed, leases, labels."""
    with _client(url, token) as client:
        _show(client.why(project, item), json_)


@remote.command()
def predict(
    project: Name,
    items: Annotated[list[str], typer.Argument(metavar="ITEM…", help="Ids of the items.")],
    model: Annotated[str, typer.Option(help="Version.")] = "active",
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Show what a model says of items."""
    with _client(url, token) as client:
        rows = client.predict(project, items=items, model=model)
    _show(rows if json_ else [prediction_line(row) for row in rows], json_)


@remote.command()
def models(project: Name, url: Url = HERE, token: Token = None, json_: Json = False) -> None:
    """List the versions of the model."""
    with _client(url, token) as client:
        _rows(client.models(project), json_)


@remote.command()
def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]")] = None,
    project: Annotated[str | None, typer.Option(help="Whose jobs.")] = None,
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """List jobs, or show one."""
    with _client(url, token) as client:
        if job is not None:
            _rows([client.job(job)], json_)
            return
        rows = list(client.jobs(project))
    _show(rows if json_ else [job_line(row) for row in rows], json_)


@tokens.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[
        list[str], typer.Option(help="admin, or project:NAME:write, :label or :read; repeatable.")
    ],
    ttl: Annotated[float | None, typer.Option(help="Seconds until it expires.")] = None,
    url: Url = HERE,
    token: Token = None,
    json_: Json = False,
) -> None:
    """Make a token; its text is shown this once."""
    with _client(url, token) as client:
        _show(client.create_token(name, scope, ttl=ttl), json_)


@tokens.command("list")
def list_tokens(url: Url = HERE, token: Token = None, json_: Json = False) -> None:
    """List the tokens, without their secrets."""
    with _client(url, token) as client:
        _rows(client.tokens(), json_)


@tokens.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN_ID")],
    url: Url = HERE,
    token: Token = None,
) -> None:
    """Let a token be refused from now on."""
    with _client(url, token) as client:
        client.revoke_token(token_id)


def _client(url: str, token: str | None) -> Client:
    from rayal.client import Client

    if token is None:
        raise SettingsError("no token is given; set RAYAL_TOKEN, or say --token")
    return Client(url, token)


def _show(value: Any, as_json: bool) -> None:
    from rayal.cli.console import show

    show(value, as_json=as_json)


def _rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Show rows; in a table with readable times and metrics, and without what is not there."""
    _show(rows if as_json else [line(row) for row in rows], as_json)
