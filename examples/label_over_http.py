"""Label Fashion-MNIST through the HTTP API of `rayal serve`, with httpx and nothing of rayal.

An annotator that knows the hidden labels (those of the IDX files) leases what the service offers,
answers, and waits while the next round trains:

    rayal ingest fashion-mnist --storage runs/served --set subset=2000
    rayal serve --storage runs/served --token-file token &
    RAYAL_TOKEN=$(cat token) python examples/label_over_http.py --pool fashion-mnist-2000-s0

Without --pool the images themselves are pushed. With a pool, the picks and the curve are those of
`rayal run` in one process with the same settings and seed; --out keeps them to be compared.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import random
import struct
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

CLASSES = [str(digit) for digit in range(10)]
AGAIN = {408, 429, 500, 502, 503, 504}
FILES = {"train": "train", "test": "t10k"}  # the prefix of an item's id, and that of its file


class Service:
    """Calls that are tried again for about a minute, every try of one with the same key."""

    def __init__(self, url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60.0)

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Idempotency-Key": uuid.uuid4().hex, **more.pop("headers", {})}
        for wait in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 16.0, 16.0, None):
            try:
                answer = self._http.request(method, path, headers=headers, **more)
                if answer.status_code not in AGAIN or wait is None:
                    break
                wait = max(wait, float(answer.headers.get("Retry-After", 0)))
            except httpx.TransportError:
                if wait is None:
                    raise
            time.sleep(wait)
        if answer.is_error:
            sys.exit(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer

    def wait_for(self, job: str) -> None:
        while (row := self.call("GET", f"/v1/jobs/{job}").json())["state"] in ("queued", "running"):
            time.sleep(1.0)
        if row["state"] != "done":
            sys.exit(f"job {job} is {row['state']}: {row['error']}")


def idx(folder: Path, name: str, header: int) -> bytes:
    """Return what an IDX file, plain or .gz, holds after its header."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            raw = path.read_bytes()
            return (gzip.decompress(raw) if path.suffix == ".gz" else raw)[header:]
    sys.exit(f"{folder} has no {name}, plain or .gz; --data names the folder of the IDX files")


def hidden_labels(folder: Path) -> dict[str, str]:
    """Return the class of every item by its id, as `train:00042` or `test:00007`."""
    labels: dict[str, str] = {}
    for prefix, stem in FILES.items():
        classes = idx(folder, f"{stem}-labels-idx1-ubyte", 8)
        labels |= {f"{prefix}:{row:05d}": CLASSES[c] for row, c in enumerate(classes)}
    return labels


def png(pixels: bytes) -> bytes:
    """Return 28 x 28 grey pixels as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    lines = b"".join(b"\0" + pixels[at : at + 28] for at in range(0, 784, 28))
    head = struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def images(folder: Path, subset: int, seed: int) -> Iterator[bytes]:
    """Yield a random subset of the training images and all test images, as lines of JSON."""
    for prefix, stem in FILES.items():
        pixels = idx(folder, f"{stem}-images-idx3-ubyte", 16)
        rows = list(range(len(pixels) // 784))
        if prefix == "train":
            rows = sorted(random.Random(seed).sample(rows, min(subset, len(rows))))
        role = "pool" if prefix == "train" else "test"
        for row in rows:
            data = base64.b64encode(png(pixels[row * 784 : (row + 1) * 784])).decode()
            yield json.dumps({"id": f"{prefix}:{row:05d}", "data": data, "role": role}).encode()


def settings(options: argparse.Namespace) -> dict[str, Any]:
    task: dict[str, Any] = {"kind": "image", "classes": CLASSES}
    if options.pool is None:  # no image is there yet to tell the size
        task |= {"size": [28, 28], "channels": 1}
    return {
        "name": options.project,
        "pool": options.pool,
        "task": task,
        "model": {"network": "small_cnn"},
        "learner": {"name": "supervised", "steps": options.steps},
        "strategy": options.strategy,
        "initial": {"count": options.initial},
        "batch_size": options.batch,
        "rounds": options.rounds,
        "seeds": options.seed,
    }


def prepare(service: Service, options: argparse.Namespace, labels: dict[str, str]) -> None:
    """Make the project, push its images unless they are there, and label the test items."""
    service.call("POST", "/v1/projects", json=settings(options))
    path = f"/v1/projects/{options.project}"
    if options.pool is None:
        body = b"\n".join(images(options.data, options.subset, options.seed))
        headers = {"Content-Type": "application/x-ndjson"}
        pushed = service.call("POST", f"{path}/items", content=body, headers=headers)
        if pushed.status_code == 202:
            service.wait_for(pushed.json()["job"]["job"])
    tests = [
        {"item": item, "label": label, "annotator": "truth"}
        for item, label in labels.items()
        if item.startswith("test:")
    ]
    for at in range(0, len(tests), 1000):
        service.call("POST", f"{path}/labels", json={"labels": tests[at : at + 1000]})
    if options.pool is None:
        service.call("POST", f"{path}/rounds:close", json={"reason": "all items are there"})


def annotate(service: Service, project: str, labels: dict[str, str]) -> list[dict[str, Any]]:
    """Lease and label until the last round is evaluated; return the picks in order."""
    path, picks = f"/v1/projects/{project}", []
    while True:
        body = {"annotator": "oracle", "count": 100}
        answer = service.call("POST", f"{path}/leases", json=body)
        leases, reason = answer.json()["leases"], answer.json().get("reason")
        if not leases:
            if reason == "finished":
                break
            failed = [r for r in service.call("GET", f"{path}/rounds").json()["rounds"]
                      if r["stage"] == "failed"]  # fmt: skip
            if failed:
                sys.exit(f"round {failed[0]['n']} failed: {failed[0]['error']}")
            time.sleep(min(float(answer.headers.get("Retry-After", 1)), 2.0))
            continue
        entries = [
            {
                "item": lease["item"]["id"],
                "label": labels[lease["item"]["id"]],
                "annotator": "oracle",
                "lease_id": lease["lease_id"],
            }
            for lease in leases
        ]
        service.call("POST", f"{path}/labels", json={"labels": entries})
        picks += [
            {"round": row["round"], "rank": row["rank"], "item": row["item"]["id"]}
            for row in leases
        ]
    return sorted(picks, key=lambda pick: (pick["round"], pick["rank"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--url", default=os.environ.get("RAYAL_URL", "http://127.0.0.1:8000"))
    add("--token", default=os.environ.get("RAYAL_TOKEN"), help="or RAYAL_TOKEN")
    add("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    add("--project", default="fashion-http")
    add("--pool", help="a pool of the service; without it the images are pushed")
    add("--subset", type=int, default=2000, help="images that are pushed")
    add("--strategy", default="badge")
    add("--initial", type=int, default=100)
    add("--batch", type=int, default=100)
    add("--rounds", type=int, default=3)
    add("--steps", type=int, default=300, help="of training in a round")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="JSON file of picks and curve")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.token is None:
        sys.exit("no token: set RAYAL_TOKEN, or say --token")
    service = Service(options.url, options.token)
    labels = hidden_labels(options.data)
    prepare(service, options, labels)
    picks = annotate(service, options.project, labels)
    curve = service.call("GET", f"/v1/projects/{options.project}/metrics").json()["curve"]
    for point in curve:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in point["metrics"].items())
        first = [p["item"] for p in picks if p["round"] == point["round"]][:3]
        print(f"round {point['round']}  {point['labels']} labels  {metrics}  picks {first} …")
    if options.out is not None:
        options.out.write_text(json.dumps({"picks": picks, "curve": curve}, indent=1))


if __name__ == "__main__":
    main()
