"""Parity: a fixed set of small jobs, and everything that came out of them as values.

    python tests/acceptance/parity.py --out FILE                    run all jobs, write their values
    python tests/acceptance/parity.py --against tests/acceptance/parity.json
    python tests/acceptance/parity.py --against FILE --renew JOB … --because TEXT

Values are picks in order with scores, runners-up, curves, settings, stage outputs, provenance,
hashes of models and columns, the columns' own bits, and exit codes. Seconds, versions, paths and
moments are none of them. Numbers are compared exactly, by their repr: the same commit on the same
machine agrees bit for bit. ``--against`` names each field that differs and exits with 1.

A reference tells its commit, CPU and torch version. Where this machine's are others, it is first
made anew from that commit, in a worktree with an environment of its own; a job that was renewed
since is made from the commit that renewed it.

Modules move, and this file must run under the interpreter of any checkout since the reference's
(``--python``). So it knows nothing but what does not change its name: the command line, the names
that ``rayal`` itself exports, the files of a run, and the ledger's tables.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import yaml

HERE = Path(__file__).resolve()
REPOSITORY = HERE.parents[2]
EXAMPLE = REPOSITORY / "examples" / "label_over_http.py"
FASHION = Path("/usr/share/datasets/fashion-mnist")
LIMIT = 600  # seconds that a single program may take
SHOWN = 160  # characters of a value that differs
READABLE = 40  # rows of a list that are written; a longer one is a digest

Values = dict[str, Any]
Settings = dict[str, Any]


# -- where a job runs --------------------------------------------------------------------------


@dataclass
class Place:
    """A job's own folder, and the interpreter under which rayal runs there.

    Attributes:
        folder: empty at first.
        python: the interpreter.
        exits: exit codes of the programs, in order.
    """

    folder: Path
    python: str
    exits: list[int] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """One thread a process, no failpoint, and nothing of another checkout on the path."""
        kept = {k: v for k, v in os.environ.items() if k not in ("RAYAL_FAILPOINT", "PYTHONPATH")}
        return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}

    def program(self, *argv: str, code: int = 0) -> str:
        """Run the interpreter and return what it prints, or raise what it says instead."""
        done = subprocess.run(
            [self.python, *argv], cwd=self.folder, env=self.environment, capture_output=True,
            text=True, check=False, timeout=LIMIT,
        )  # fmt: skip
        self.exits.append(done.returncode)
        if done.returncode != code:
            raise JobError(
                f"{' '.join(argv[:4])} ended with {done.returncode}, not {code}: "
                f"{(done.stderr or done.stdout)[-2000:]}"
            )
        return done.stdout

    def rayal(self, *argv: str, code: int = 0) -> str:
        """Run a command of rayal, and return what it prints."""
        return self.program("-m", "rayal", *argv, code=code)

    def run(self, settings: Settings, *argv: str, name: str = "run", code: int = 0) -> Path:
        """Write settings as YAML, run them, and return the storage root."""
        file, root = self.folder / f"{name}.yaml", self.folder / name
        file.write_text(yaml.safe_dump({**settings, "storage": str(root)}))
        self.rayal("run", file.name, *argv, code=code)
        return root


class JobError(RuntimeError):
    """A program of a job ended in another way than it should."""


# -- what came out -----------------------------------------------------------------------------


def outcome(root: Path, *, random_too: bool = False) -> Values:
    """Return what a storage root holds of its projects.

    Args:
        root: of a finished run, with its outputs.
        random_too: whether the baseline, which every run has, is told as well.
    """
    values: Values = {}
    with contextlib.closing(sqlite3.connect(f"file:{root}/ledger.sqlite?mode=ro", uri=True)) as at:
        names = [name for (name,) in at.execute("select project from projects order by project")]
        for name in names:
            if random_too or not name.startswith("random-"):
                values[name] = {**_project(at, name), "columns": _columns(at, root, name)}
    curve = _curve(root, set(values))
    return {**values, **({"curve": curve} if curve else {})}


def _project(at: sqlite3.Connection, name: str) -> Values:
    """Return a project as the ledger's tables tell it."""

    def rows(columns: str, table: str, order: str) -> list[tuple[Any, ...]]:
        return at.execute(
            f"select {columns} from {table} where project = ? order by {order}", (name,)
        ).fetchall()

    picks: dict[str, list[Any]] = {}
    others: dict[str, list[Any]] = {}
    for round, item, score, chance, picked in rows(
        "round, item, score, probability, picked", "picks", "round, rank"
    ):
        (picks if picked else others).setdefault(f"round {round}", []).append([item, score, chance])
    ((settings,),) = rows("settings", "projects", "project")
    return {
        "settings": json.loads(settings),
        "rounds": rows("round, snapshot, labels_seq, seeds", "rounds", "round"),
        "stages": {
            f"round {round} {stage}": json.loads(output)
            for round, stage, output in rows("round, stage, output", "stages", "round, stage")
        },
        "provenance": {
            f"round {round}": json.loads(told)
            for round, told in rows("round, provenance", "selections", "round")
        },
        "picks": {round: _short(found) for round, found in picks.items()},
        "runners-up": {round: _digest(found) for round, found in others.items()},
        "labels": _digest(rows("seq, item, annotator, value, status, slot", "labels", "seq")),
        "items": _digest(
            rows("item, round, rank, score, need, accepted, open", "items", "item")
        ),
        "models": _models(at, name),
    }  # fmt: skip


def _models(at: sqlite3.Connection, project: str) -> list[list[Any]]:
    """Return the last checkpoints of each of a project's models, whichever project trained it."""
    found = at.execute(
        "select output from stages where project = ? and stage in ('train', 'pretrain')", (project,)
    )
    hashes = sorted({json.loads(output)["model"] for (output,) in found})
    told = "select model, member, epoch, final from checkpoints where model = ? order by member"
    return [list(row) for hash in hashes for row in at.execute(told, (hash,))]


def _columns(at: sqlite3.Connection, root: Path, project: str) -> dict[str, str]:
    """Return a digest of the bits of each committed columns hash that is still on disk."""
    contents: dict[str, list[Any]] = {}
    for hash, part, file, rows in at.execute(
        "select columns, part, file, rows from column_parts where project = ? "
        "order by columns, part", (project,),
    ):  # fmt: skip
        if file.endswith(".arrow"):
            contents.setdefault(hash, []).append([part, rows, _bits(root / file)])
    return {hash: _digest(parts) for hash, parts in contents.items()}


def _bits(file: Path) -> dict[str, str]:
    """Return a digest of the values of each column of an Arrow file, without its metadata."""
    table = pa.ipc.open_file(file).read_all()
    return {name: _array_bits(table.column(name)) for name in table.column_names}


def _array_bits(column: pa.ChunkedArray) -> str:
    whole = column.combine_chunks()
    chunks = whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole]
    hashed = hashlib.blake2b(digest_size=8)
    for chunk in chunks:
        while pa.types.is_nested(chunk.type):
            chunk = chunk.flatten()
        values = chunk.to_numpy(zero_copy_only=False)
        hashed.update(
            repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
        )
    return hashed.hexdigest()


def _curve(root: Path, projects: set[str]) -> list[dict[str, str]]:
    """Return the curve's rows of some projects without their seconds, numbers as written."""
    with (root / "curve.csv").open(newline="") as lines:
        return [
            {name: value for name, value in row.items() if not name.startswith("seconds.")}
            for row in csv.DictReader(lines)
            if f"{row['strategy']}-{row['seed']}" in projects
        ]


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _short(rows: list[Any]) -> Any:
    """Return a list as it is, or where it is long its length, first rows and digest."""
    if len(rows) <= READABLE:
        return rows
    return {"rows": len(rows), "first": rows[:3], "digest": _digest(rows)}


# -- data ---------------------------------------------------------------------------------------

CITIES = ("Bergen", "Graz", "Porto", "Turku", "Utrecht")
TOPICS = ("food", "travel", "music")
WORDS = """
soup bread sauce kitchen lemon garlic roast butter waiter dessert plate spoon
train harbour ticket island luggage bridge station ferry map hostel coast
violin chorus rhythm stage singer melody drum concert piano record album
the a was and with very our we had some again then slowly quite nearly after
"""  # of each topic a line, then what says nothing


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(header)
        writer.writerows(rows)


def texts(file: Path, count: int = 500) -> None:
    """Write short texts of three topics: a few telling words among common ones."""
    chance, rows = random.Random(7), []
    *telling, common = (line.split() for line in WORDS.strip().splitlines())
    for at in range(count):
        topic = chance.randrange(len(TOPICS))
        words = chance.choices(telling[topic], k=2)
        words += chance.choices(telling[chance.randrange(len(TOPICS))], k=1)
        words += chance.choices(common, k=chance.randint(3, 9))
        chance.shuffle(words)
        rows.append((f"text-{at:04d}", " ".join(words), TOPICS[topic]))
    write_csv(file, ("id", "text", "label"), rows)


def houses(file: Path, count: int = 400) -> None:
    """Write tracts of a town: numbers of very different scales, and a price made of them."""
    chance, rows = random.Random(8), []
    for at in range(count):
        rooms, crime, tax = chance.gauss(6, 0.7), chance.expovariate(0.3), chance.uniform(200, 700)
        age, distance = chance.uniform(0, 100), chance.uniform(1, 12)
        price = 5 * rooms - 0.4 * crime - 0.01 * tax + 0.6 * distance + chance.gauss(0, 1.5)
        rows.append((f"tract-{at:03d}", rooms, crime, tax, age, distance, round(price, 1)))
    write_csv(file, ("id", "rooms", "crime", "tax", "age", "distance", "price"), rows)


def customers(file: Path, count: int = 500) -> None:
    """Write a table with numbers and categories, and a class that depends on both.

    Half of the rows are there twice, so that scores are equal and the order among them shows.
    """
    chance, rows = random.Random(9), list[tuple[Any, ...]]()
    while len(rows) < count:
        age, income = chance.randint(18, 90), chance.gauss(40, 12)
        city, member = chance.choice(CITIES), chance.choice((True, False))
        score = (
            0.05 * income - 0.02 * age + CITIES.index(city) * 0.4 + member + chance.gauss(0, 0.5)
        )
        label = "buys" if score > 2.2 else "leaves"
        for _ in range(chance.randint(1, 2)):
            rows.append((f"c{len(rows):03d}", age, income, city, member, label))
    write_csv(file, ("id", "age", "income", "city", "member", "label"), rows)


DIGITS: Settings = {
    "pool": {"source": "digits", "subset": 500},
    "model": {"network": "small_cnn", "params": {"widths": [8, 8, 24], "dropout": 0.2}},
    "learner": {"steps": 40, "batch": 16, "epoch_steps": 20, "lr": 3e-3},
    "initial": {"count": 30},
    "rounds": 2,
    "batch": 10,
    "seeds": [3],
    "keep": "all",
}
DENSE = {"network": "mlp", "params": {"widths": [32], "dropout": 0.2}}
TEXTS = {
    "pool": {
        "source": "texts.csv",
        "id": "id",
        "label": "label",
        "text": "text",
        "test_share": 0.3,
    },
    "task": {"kind": "text", "length": 16, "vocabulary": 300},
    "model": {"network": "kim_cnn", "params": {"width": 16, "filters": 8, "heights": [2, 3]}},
}
HOUSES = {
    "pool": {"source": "houses.csv", "id": "id", "label": "price", "test_share": 0.3},
    "task": {"kind": "table", "target": "number"},
    "model": {"network": "mlp", "params": {"widths": [16]}},
}
CUSTOMERS = {
    "pool": {
        "source": "customers.csv", "id": "id", "label": "label", "test_share": 0.3,
        "categorical": ["city", "member"],
    },
    "task": {"kind": "table"},
    "model": DENSE,
}  # fmt: skip
DATA = {"texts.csv": texts, "houses.csv": houses, "customers.csv": customers}

#: what a strategy needs beyond the settings of the digits, and hyperparameters that make it quick
NEEDS: dict[str, tuple[Settings, Settings]] = {
    "adaptive": ({"model": {"network": "mlp", "params": {"widths": [32]}}},
                 {"leading": 60, "stride": 6, "hidden": 16}),
    "bait_regression": (HOUSES, {}),
    "bald": ({}, {"passes": 10}),
    "batchbald": ({}, {"passes": 10}),
    "dfal": ({}, {"steps": 10}),
    "egl_entropy_beta": (TEXTS, {"rounds": 2}),
    "egl_word": (TEXTS, {}),
    "ensemble_bald": ({}, {"members": 3}),
    "ensemble_entropy": ({}, {"members": 3}),
    "ensemble_variation_ratio": ({}, {"members": 3}),
    "mc_entropy": ({}, {"passes": 10}),
    "mean_std": ({}, {"passes": 10}),
    "pbp": ({**HOUSES, "model": {"network": "pbp", "params": {"hidden": [8]}},
             "learner": {"name": "pbp", "steps": 5}}, {}),
    "variation_ratio": ({}, {"passes": 10}),
}  # fmt: skip


def made(place: Place, settings: Settings) -> Settings:
    """Return the digits' settings with others in their place; of own data the pool is there then.

    It is ingested under a fixed name: by default a pool is named by the path of its file too.
    """
    whole = {**DIGITS, **settings}
    name, _, suffix = whole["pool"]["source"].partition(".")
    if not suffix:
        return whole
    DATA[whole["pool"]["source"]](place.folder / f"{name}.csv")
    keys = [f"{key}={json.dumps(v)}" for key, v in whole["pool"].items() if key != "source"]
    argv = ["ingest", f"{name}.csv", "--storage", "run", "--name", name]
    place.rayal(*argv, *(word for key in keys for word in ("--set", key)))
    return {**whole, "pool": {"source": name}}


# -- jobs ---------------------------------------------------------------------------------------

Make = Callable[[Place], Values]


@dataclass(frozen=True)
class Job:
    """What is run together, and the names of the jobs that its values are told under.

    Args:
        names: of one job; or of the strategies that one run compares, which takes less time.
        make: what is run, given the names that are asked for.
    """

    names: tuple[str, ...]
    make: Callable[[Place, Sequence[str]], dict[str, Values]]

    @classmethod
    def single(cls, name: str, make: Make) -> Job:
        """Return a job that is run by itself."""
        return cls((name,), lambda place, names: {name: make(place)})


STRATEGY = "strategy "  # the name of its job begins so


def strategies(settings: Settings, place: Place, names: Sequence[str]) -> dict[str, Values]:
    """Two rounds of strategies that take the same rows and networks, in one run."""
    own = [name.removeprefix(STRATEGY) for name in names]
    chosen = [{"name": name, **NEEDS.get(name, ({}, {}))[1]} for name in own]
    whole = outcome(place.run(made(place, {**settings, "strategies": chosen})), random_too=True)
    curve = whole.pop("curve")
    return {
        f"{STRATEGY}{name}": {
            **{project: told for project, told in whole.items() if _is_of(project, name)},
            "curve": [row for row in curve if row["strategy"] == name],
        }
        for name in own
    }


def _is_of(project: str, strategy: str) -> bool:
    return project.rpartition("-")[0] == strategy


def strategy_jobs(names: Sequence[str]) -> Iterator[Job]:
    """Yield the jobs of registered strategies, grouped by the settings that they need."""
    groups: dict[str, tuple[Settings, list[str]]] = {}
    for name in names:
        settings = NEEDS.get(name, ({}, {}))[0]
        groups.setdefault(json.dumps(settings), (settings, []))[1].append(f"{STRATEGY}{name}")
    for settings, grouped in sorted(groups.values(), key=lambda group: -len(group[1])):
        yield Job(tuple(grouped), partial(strategies, settings))


def learner(name: str, settings: Settings, place: Place) -> Values:
    """Two rounds of margin with a learner."""
    params = {**DIGITS["learner"], **settings.get("learner", {}), "name": name}
    chosen = {**settings, "learner": params, "strategies": ["margin"]}
    return outcome(place.run(made(place, chosen)), random_too=True)


def compared(settings: Settings, place: Place) -> Values:
    """Two rounds of several strategies."""
    return outcome(place.run(made(place, settings)), random_too=True)


def on_ray(place: Place) -> Values:
    """The same run in this process and on Ray."""
    settings = made(place, {"strategies": ["margin", "badge"], "plan": False})
    local = outcome(place.run(settings, name="local"))
    ray = outcome(place.run(settings, "--executor", "ray", name="ray"))
    picks = [{p: v["picks"] for p, v in told.items() if p != "curve"} for told in (local, ray)]
    return {**ray, "picks as in one process": picks[0] == picks[1]}


def labeled_by_hand(place: Place) -> Values:
    """A run without an oracle: export what is offered, label it from a file, run again."""
    settings = made(place, {**CUSTOMERS, "strategies": ["margin"], "oracle": "none", "rounds": 1})
    with (place.folder / "customers.csv").open(newline="") as lines:
        truth = {row["id"]: row["label"] for row in csv.DictReader(lines)}
    settings["task"] = {"kind": "table", "classes": ["buys", "leaves"]}
    offered = []
    for _ in range(2):
        root = place.run(settings)
        projects = [n for n in _projects(root) if not n.startswith("random-")]
        for project in projects:
            place.rayal("export", f"run#{project}", "--what", "offered", "--out", "offered.csv")
            with (place.folder / "offered.csv").open(newline="") as lines:
                ids = [row["id"] for row in csv.DictReader(lines)]
            offered.append([project, ids])
            answers = [(item, truth[item]) for item in ids]
            write_csv(place.folder / "labels.csv", ("id", "label"), answers)
            place.rayal("label", f"run#{project}", "labels.csv", "--annotator", "ada")
    root = place.run(settings)
    return {**outcome(root), "offered": offered}


def _projects(root: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(root / "ledger.sqlite")) as at:
        return [n for (n,) in at.execute("select project from projects order by project")]


ASKING = """
import json, rayal, sys
answers = json.load(open("truth.json"))
project = rayal.Project.open("run", sys.argv[1])
told = []
with project:
    while not project.finished:
        batch = project.ask(7)
        if batch:
            told.append([lease.item for lease in batch])
            project.tell({lease.item: answers[lease.item] for lease in batch})
        else:
            project.train()
print(json.dumps(told))
"""


def asked_in_python(place: Place) -> Values:
    """A project opened by ``rayal.Project``: ask, tell, train, to its end."""
    settings = made(place, {**CUSTOMERS, "strategies": ["entropy"], "oracle": "none", "rounds": 2})
    settings["task"] = {"kind": "table", "classes": ["buys", "leaves"]}
    with (place.folder / "customers.csv").open(newline="") as lines:
        truth = {row["id"]: row["label"] for row in csv.DictReader(lines)}
    (place.folder / "truth.json").write_text(json.dumps(truth))
    root = place.run(settings)
    (project,) = [n for n in _projects(root) if not n.startswith("random-")]
    told = json.loads(place.program("-c", ASKING, project))
    return {**outcome(root), "told": told}


CHOOSING = """
import json, numpy as np, rayal
rng = np.random.default_rng(5)
def log_probs(*shape):
    x = rng.normal(size=shape).astype("float32")
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
rows, ids = 300, [f"row-{i}" for i in range(300)]
columns = {"log_probs": log_probs(rows, 5),
           "embedding": rng.normal(size=(rows, 8)).astype("float32"),
           "member_log_probs": log_probs(rows, 6, 5)}
few = {name: column[:20] for name, column in columns.items()}
asked = {"least_confidence": "log_probs", "margin": "log_probs", "entropy": "log_probs",
         "badge": "log_probs embedding", "egl_sm": "log_probs embedding",
         "coreset": "embedding", "bait": "log_probs embedding", "batchbald": "member_log_probs",
         "random": "log_probs"}
made = {}
def choose(key, name, of, **more):
    chosen = rayal.select(name, of, 20, ids=ids[:len(next(iter(of.values())))], seed=2, **more)
    made[key] = [[i, float(s)] for i, s in zip(chosen.ids, chosen.scores)]
for name, wanted in asked.items():
    choose(name, name, {c: columns[c] for c in wanted.split()})
choose("coreset, labeled", "coreset", {"embedding": columns["embedding"]},
       labeled={"embedding": few["embedding"]})
choose("badge, kmeans||", "badge", {c: columns[c] for c in ("log_probs", "embedding")},
       params={"method": "kmeans||"})
tied = {"log_probs": np.repeat(columns["log_probs"][:6], 50, axis=0)}
choose("margin, many ties", "margin", tied)
print(json.dumps(made))
"""


def chosen_from_arrays(place: Place) -> Values:
    """``rayal.select`` on arrays, and ``rayal select`` on a file; one with many ties."""
    made: Values = json.loads(place.program("-c", CHOOSING))
    chance = random.Random(11)
    rows = [(f"row-{i}", [chance.random() for _ in range(4)]) for i in range(200)]
    table = pa.table({"id": [i for i, _ in rows], "embedding": [x for _, x in rows]})
    pq.write_table(table, place.folder / "columns.parquet")
    argv = ("select", "columns.parquet", "--strategy", "coreset", "-k", "15", "--json")
    return {**made, "command": json.loads(place.rayal(*argv))}


def refused_and_shown(place: Place) -> Values:
    """Commands that show, and settings that are refused: their exit codes."""
    settings = made(place, {"strategies": ["margin"], "rounds": 1})
    root = place.run(settings)
    picks = outcome(root)["margin-s3"]["picks"]["round 0"]
    place.rayal("status", "run")
    place.rayal("why", "run#margin-s3", picks[0][0])
    place.run({**settings, "strategies": ["margn"]}, name="unknown", code=2)
    place.run({**settings, "bach": 10}, name="key", code=2)
    place.rayal("label", "run#nobody", "run.yaml", code=2)
    return {"first pick": picks[0]}


def labeled_over_http(place: Place) -> Values:
    """The service: started, labeled by the example over HTTP, stopped."""
    place.rayal("ingest", "fashion-mnist", "--storage", "served", "--set", "subset=200")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with _served(place, port, url):
        token = (place.folder / "token").read_text().strip()
        argv = ["--url", url, "--token", token, "--pool", "fashion-mnist-200-s0", "--rounds", "1"]
        argv += ["--steps", "10", "--initial", "30", "--batch", "30", "--out", "kept.json"]
        place.program(str(EXAMPLE), *argv)
    kept = json.loads((place.folder / "kept.json").read_text())
    picks = [[p["round"], p["rank"], p["item"]] for p in kept["picks"]]
    curve = [[p["round"], p["labels"], p["metrics"]] for p in kept["curve"]]
    return {"picks": _short(picks), "curve": curve}


@contextlib.contextmanager
def _served(place: Place, port: int, url: str) -> Iterator[None]:
    """Run the service until it is ready, and end it and its children at last."""
    argv = ["serve", "--storage", "served", "--port", str(port), "--token-file", "token"]
    with (place.folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [place.python, "-m", "rayal", *argv], cwd=place.folder, env=place.environment,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(url + "/readyz", process, place.folder / "serve.log")
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        with contextlib.suppress(OSError):
            opener.open(url, timeout=5).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise JobError(f"the service does not answer: {log.read_text()[-2000:]}")


FASHION_RUN: Settings = {
    "pool": {"source": "fashion-mnist", "subset": 5000},
    "learner": {"steps": 60, "batch": 32, "epoch_steps": 30},
    "model": {"network": "small_cnn"},
    "strategies": ["margin", "badge", "coreset", {"name": "batchbald", "passes": 10}],
    "initial": {"count": 50},
    "batch": 20,
}
FROZEN: Settings = {
    "pool": {"source": "digits", "subset": 300},
    "task": {"kind": "image", "size": [32, 32]},
    "model": {"backbone": "efficientnet_lite0", "weights": "random", "frozen": True, "head": "mlp"},
    "strategies": ["margin", "badge", {"name": "bald", "passes": 10}],
}
COMPARED: dict[str, Settings] = {
    "fashion": FASHION_RUN,
    "frozen": FROZEN,
    "table": {**CUSTOMERS, "strategies": ["margin", "badge", "coreset"]},
    "text": {**TEXTS, "strategies": ["entropy", "badge"]},
    "tfidf": {**TEXTS, "model": {"network": "tfidf_linear"}, "strategies": ["margin"]},
    "shards": {"strategies": ["badge", "coreset"], "shards": 3, "selection": {"precision": "bf16"}},
    "seeds": {
        "strategies": ["margin"],
        "seeds": [0, {"pool": 1, "model": 2, "query": 3}],
        "oracle": {"name": "hidden", "noise": 0.2},
    },
}
LEARNERS: dict[str, Settings] = {
    "certain_pseudo_labels": {},
    "layerwise_pretrained": {"model": DENSE, "learner": {"pretrain_steps": 30}},
    "supervised": {
        "learner": {"augment": True, "label_smoothing": 0.1, "swa": 0.5,
                    "class_weights": "balanced", "optimizer": "sgd"},
    },
}  # fmt: skip


def jobs_of(python: str) -> list[Job]:
    """Return all jobs, the longest first; of strategies those that are registered there."""
    listed = subprocess.run(
        [python, "-m", "rayal", "strategies", "--json"], capture_output=True, text=True, check=True
    )
    names = sorted(json.loads(listed.stdout)["strategies"])
    singles: dict[str, Make] = {
        "over http": labeled_over_http,
        "fashion": partial(compared, COMPARED["fashion"]),
        "ray": on_ray,
        "by hand": labeled_by_hand,
        "commands": refused_and_shown,
        "project": asked_in_python,
        "arrays": chosen_from_arrays,
        **{n: partial(compared, settings) for n, settings in COMPARED.items()},
        **{f"learner {n}": partial(learner, n, settings) for n, settings in LEARNERS.items()},
    }
    return [*strategy_jobs(names), *(Job.single(n, make) for n, make in singles.items())]


def run_jobs(jobs: Sequence[Job], python: str, lanes: int) -> dict[str, Values]:
    """Run jobs side by side, each in a folder of its own, and return their values by name."""
    began, count = time.monotonic(), sum(len(job.names) for job in jobs)
    values: dict[str, Values] = {}

    def one(job: Job) -> None:
        started = time.monotonic()
        told = attempted(job, python)
        values.update(told)
        wrong = [f"\n    {n} FAILED: {v['failed']}" for n, v in told.items() if "failed" in v]
        names = job.names[0] if len(told) == 1 else f"{len(told)} strategies"
        seconds = f"{time.monotonic() - started:.0f} s"
        say(f"[{len(values)}/{count}] {names}  {seconds}{''.join(wrong)}")

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(one, jobs))
    say(f"{count} jobs in {time.monotonic() - began:.0f} s, {lanes} at a time")
    return {name: values[name] for name in sorted(values)}


def attempted(job: Job, python: str) -> dict[str, Values]:
    """Return the values of a job; where several fail together, those of each by itself."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        place = Place(Path(folder), python)
        try:
            made = job.make(place, job.names)
        except (JobError, subprocess.TimeoutExpired) as error:
            if len(job.names) > 1:
                parts = [attempted(Job((name,), job.make), python) for name in job.names]
                return {name: told for part in parts for name, told in part.items()}
            made = {job.names[0]: {"failed": str(error).replace(folder, "FOLDER")}}
        told: dict[str, Values] = plain({n: {"exits": place.exits, **v} for n, v in made.items()})
        return told


def plain(value: Any) -> Any:
    """Return the value as JSON gives it back."""
    return json.loads(json.dumps(value))


def say(line: str) -> None:
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


# -- the reference ------------------------------------------------------------------------------

MACHINE = """
import json, platform, torch
models = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if "model name" in line]
cpu = f"{(models or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"
print(json.dumps({"cpu": cpu, "torch": torch.__version__}))
"""


def machine(python: str) -> dict[str, str]:
    """Return what bits depend on besides the commit: the CPU, and torch's version."""
    argv = [python, "-c", MACHINE]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def git(*argv: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), *argv], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise JobError(f"git {' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout.strip()


def write(file: Path, reference: Mapping[str, Any]) -> None:
    """Write a reference: a field of a job a line, so that a renewed one reads well as a change."""
    head = {name: value for name, value in reference.items() if name != "jobs"}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    jobs = []
    for name, values in reference["jobs"].items():
        fields = [f"  {json.dumps(n)}: {json.dumps(v, sort_keys=True)}" for n, v in values.items()]
        jobs.append(f" {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n }")
    text = "{\n" + "\n".join(lines) + '\n"jobs": {\n' + ",\n".join(jobs) + "\n}}\n"
    assert json.loads(text) == plain(reference)
    file.write_text(text)


def remade(
    reference: Mapping[str, Any], file: Path, wanted: set[str], lanes: int
) -> dict[str, Values]:
    """Return the reference's jobs made on this machine, each from its own commit."""
    commits: dict[str, list[str]] = {}
    for job in sorted(wanted & set(reference["jobs"])):
        commits.setdefault(commit_of(job, reference, file), []).append(job)
    values: dict[str, Values] = {}
    for commit, names in commits.items():
        say(f"{len(names)} jobs of the reference are made anew from {commit[:12]}")
        values |= _made_at(commit, names, lanes)
    return values


def commit_of(job: str, reference: Mapping[str, Any], file: Path) -> str:
    """Return the commit that a job's values come from: the last that renewed it, else the first."""
    reasons = [entry["because"] for entry in reference["renewed"] if job in entry["jobs"]]
    if not reasons:
        return str(reference["commit"])
    # the commit in which the reason first stands in the file: its own hash could not be written
    text = json.dumps(reasons[-1])
    argv = ("log", "--reverse", "--format=%H", f"-S{text}", "--", str(file.resolve()))
    found = git(*argv).splitlines()
    if not found:
        raise JobError(f"{job!r} was renewed because {text}, which is not committed yet")
    return found[0]


def _made_at(commit: str, names: Sequence[str], lanes: int) -> dict[str, Values]:
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        tree, out = Path(folder) / "tree", Path(folder) / "out.json"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
            subprocess.run(["uv", "sync", "--quiet"], cwd=tree, env=environment, check=True)
            python = str(tree / ".venv" / "bin" / "python")
            argv = [sys.executable, str(HERE), "--python", python, "--out", str(out)]
            subprocess.run([*argv, "--lanes", str(lanes), "--only", *names], check=True)
            values: dict[str, Values] = json.loads(out.read_text())["jobs"]
            return values
        finally:
            git("worktree", "remove", "--force", str(tree))


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two values differ: the path, and both values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            inner = f"{path}, {name}" if path else name
            yield from differences(old.get(name, "absent"), new.get(name, "absent"), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path}[{at}]")
    elif json.dumps(old) != json.dumps(new):  # by their text: nan is nan, and 1 is not 1.0
        yield path, old, new


def compare(reference: Mapping[str, Values], values: Mapping[str, Values]) -> int:
    """Name what differs, and return the number of jobs that differ."""
    wrong = []
    for name in values:
        if name not in reference:
            say(f"{name}: not in the reference")
            continue
        found = list(differences(reference[name], values[name]))
        for path, old, new in found[:5]:
            say(f"{name}: {path}\n    reference {_shown(old)}\n    now       {_shown(new)}")
        if len(found) > 5:
            say(f"{name}: and {len(found) - 5} more")
        wrong += [name] if found else []
    same = len(set(values) & set(reference)) - len(wrong)
    say(f"{same} jobs as in the reference, {len(wrong)} differ{': ' if wrong else ''}"
        f"{', '.join(wrong)}")  # fmt: skip
    return len(wrong)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def renew(file: Path, values: Mapping[str, Values], because: str) -> None:
    """Put jobs' values into the reference, with the reason and the commit they were made on."""
    reference = json.loads(file.read_text())
    reference["jobs"] = dict(sorted({**reference["jobs"], **values}.items()))
    entry = {"jobs": sorted(values), "because": because, "on": git("rev-parse", "HEAD")}
    write(file, {**reference, "renewed": [*reference["renewed"], entry]})
    say(f"{file}: {len(values)} jobs renewed")


# -- the command --------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--python", default=sys.executable, help="interpreter of the checkout that is run")
    add("--only", nargs="+", metavar="JOB", help="some jobs, not all")
    add("--lanes", type=int, default=1, help="jobs at a time, each of one thread")
    add("--out", type=Path, help="file for the values")
    add("--commit", help="the commit that --out tells; by default that of this checkout")
    add("--against", type=Path, metavar="FILE", help="compare with a reference; 1 if it differs")
    add("--renew", nargs="+", metavar="JOB", help="put these jobs' values into --against")
    add("--because", help="the reason of --renew")
    add("--list", action="store_true", help="name the jobs, and run none")
    given = parser.parse_args()
    if given.renew and not (given.against and given.because):
        parser.error("--renew wants the reference's file, --against, and a reason, --because")
    if given.renew and given.because in [
        entry["because"] for entry in json.loads(given.against.read_text())["renewed"]
    ]:
        parser.error("this reason stands in the file; say what is changed this time")
    return given


def chosen_jobs(given: argparse.Namespace) -> list[Job]:
    """Return the jobs that are asked for; one that this checkout lacks ends the program."""
    jobs = jobs_of(given.python)
    known = [name for job in jobs for name in job.names]
    wanted = set(given.renew or given.only or known)
    if not wanted <= set(known):
        missing = ", ".join(sorted(wanted - set(known)))
        sys.exit(f"no job {missing}; there are {', '.join(known)}")
    chosen = [replace(job, names=tuple(n for n in job.names if n in wanted)) for job in jobs]
    return [job for job in chosen if job.names]


def main() -> int:
    given = arguments()
    jobs = chosen_jobs(given)
    if given.list:
        say("\n".join(name for job in jobs for name in job.names))
        return 0
    here = machine(given.python)
    values = run_jobs(jobs, given.python, given.lanes)
    failed = [name for name, told in values.items() if "failed" in told]
    if given.out:
        commit = given.commit or git("rev-parse", "HEAD")
        write(given.out, {"commit": commit, **here, "renewed": [], "jobs": values})
    if given.renew:
        if failed:
            sys.exit(f"{', '.join(failed)} failed, nothing is renewed")
        renew(given.against, values, given.because)
    elif given.against:
        reference = json.loads(given.against.read_text())
        kept = reference["jobs"]
        other = {n: (reference[n], here[n]) for n in here if reference[n] != here[n]}
        if other:
            say(f"the reference was made elsewhere ({other}), so it is made anew from its commit")
            kept = remade(reference, given.against, set(values), given.lanes)
        gone = [] if given.only else sorted(set(reference["jobs"]) - set(values))
        if gone:
            say(f"the reference has jobs that are not here: {', '.join(gone)}")
        return 1 if compare(kept, values) or gone or failed else 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
