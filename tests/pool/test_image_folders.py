from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayal.errors import PoolError
from rayal.pixels import why_broken
from rayal.pool.reader import Pool


def picture(path: Path, seed: int = 0, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_subfolders_are_classes(tmp_path: Path) -> None:
    files = [picture(tmp_path / "in" / f"{c}/{n}.png", n) for n, c in enumerate(["cat", "dog"] * 2)]
    pool = Pool.from_images(tmp_path / "out", "p", tmp_path / "in")
    assert pool.payload == {"kind": "image", "encoding": "file"}
    assert pool.classes == ("cat", "dog") and len(pool) == 4
    data = pool.take(["dog/3.png", "cat/0.png"]).column("data").to_pylist()
    assert data == [files[3].read_bytes(), files[0].read_bytes()]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.jpg")
    picture(tmp_path / "in/.hidden/b.jpg", 1)
    (tmp_path / "in/.DS_Store").write_bytes(b"x")
    pool = Pool.from_images(tmp_path / "out", "p", tmp_path / "in")
    assert list(pool.ids()) == ["a.jpg"] and pool.classes is None
    assert pool.info["quarantined"]["count"] == 0


def test_test_items_have_ids_of_their_own(tmp_path: Path) -> None:
    picture(tmp_path / "train/cat/1.png", 1)
    picture(tmp_path / "val/cat/1.png", 2)
    pool = Pool.from_images(tmp_path / "out", "p", tmp_path / "train", test=tmp_path / "val")
    assert list(pool.ids()) == ["cat/1.png"] and list(pool.ids("test")) == ["test/cat/1.png"]
    assert pool.snapshot == 1 and pool.classes == ("cat",)


def test_a_labels_file_goes_before_subfolders(tmp_path: Path) -> None:
    picture(tmp_path / "in/shard0/a.png")
    (tmp_path / "l.csv").write_text("id,label\nshard0/a.png,fox\n")
    pool = Pool.from_images(tmp_path / "out", "p", tmp_path / "in", labels=tmp_path / "l.csv")
    assert pool.classes == ("fox",)


def test_broken_files_are_quarantined_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    whole = picture(tmp_path / "in/good.png", size=30).read_bytes()
    picture(tmp_path / "in/bomb.png", size=40)
    picture(tmp_path / "in/larger bomb.png", size=60)
    (tmp_path / "in/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/notes.txt").write_text("no image")
    (tmp_path / "in/empty.jpg").write_bytes(b"")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere")
    pool = Pool.from_images(tmp_path / "out", "p", tmp_path / "in")
    assert list(pool.ids()) == ["good.png"]
    reasons = dict(pool.info["quarantined"]["rows"])
    assert pool.info["quarantined"]["count"] == 6 and list(reasons) == sorted(reasons)
    assert reasons["bomb.png"].startswith("DecompressionBombWarning")
    assert reasons["larger bomb.png"].startswith("DecompressionBombError")
    assert reasons["notes.txt"] == reasons["empty.jpg"]
    assert reasons["notes.txt"].startswith("not an image of the formats JPEG")
    assert "No such file" in reasons["gone.png"] and "truncated" in reasons["cut.png"]


def test_a_name_that_is_not_text_is_quarantined(tmp_path: Path) -> None:
    data = picture(tmp_path / "in/good.png").read_bytes()
    (tmp_path / "in" / b"\xff.png".decode(errors="surrogateescape")).write_bytes(data)
    pool = Pool.from_images(tmp_path / "out", "p", tmp_path / "in")
    assert pool.info["quarantined"]["rows"] == [["\ufffd.png", "name is not UTF-8"]]


def test_only_the_listed_formats_are_opened() -> None:
    for name, allowed in (("PNG", True), ("PCX", False)):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, name)
        assert (why_broken(file.getvalue()) is None) == allowed


def test_a_folder_must_exist_and_hold_images(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="nowhere is not a folder; give a folder of images"):
        Pool.from_images(tmp_path / "out", "p", tmp_path / "nowhere")
    (tmp_path / "in").mkdir()
    with pytest.raises(PoolError, match="no usable rows"):
        Pool.from_images(tmp_path / "out", "p", tmp_path / "in")
