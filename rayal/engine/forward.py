"""Signals of rows: decoded, in batches padded to one width, run through the committee."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.engine.scan_options import ScanOptions
from rayal.models.committee import Committee
from rayal.models.dropout import evaluating
from rayal.signals import Forward, Signal, compute
from rayal.types import Keys

DECODED_BYTES = 4 << 20  # of rows decoded at once: they stay in the cache


def run_signals(
    committee: Committee,
    signals: Sequence[Signal],
    table: pa.Table,
    *,
    keys: Keys,
    options: ScanOptions,
    report: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Compute signals for the rows of a table, ``[N, …]`` each, in padded batches.

    Args:
        committee: the trained members.
        signals: what to compute.
        table: pool rows.
        keys: uint64 ``[N]``, the rows' id keys.
        options: batch size, precision, device.
        report: called with the rows of each finished batch.
    """
    collected: dict[str, list[Tensor]] = {}
    size = 4 * math.prod(committee.task.input_shape)
    width = max(1, DECODED_BYTES // (size * options.batch)) * options.batch
    for start in range(0, table.num_rows if signals else 0, width):
        rows = table.slice(start, width)
        raw, ids = committee.task.decode(rows), rows.column("id").to_pylist()
        here = keys[start : start + len(ids)]
        for name, value in signals_of(committee, signals, raw, ids, here, options=options).items():
            collected.setdefault(name, []).append(value)
        if report is not None:
            report(len(ids))
    return {name: whole(parts) for name, parts in collected.items()}


def signals_of(
    committee: Committee,
    signals: Sequence[Signal],
    raw: Tensor,
    ids: Sequence[str],
    keys: Keys,
    *,
    options: ScanOptions,
) -> dict[str, Tensor]:
    """Compute signals of decoded rows ``[N, …]``, in batches padded to one width."""
    width = options.width
    device = torch.device(options.device)
    bf16 = options.precision == "bf16"
    committee.move(options.device)
    collected: dict[str, list[Tensor]] = {}
    with evaluating(*committee.nets), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(ids), options.batch):
            at = slice(start, start + options.batch)
            count = len(ids[at])
            padded = padded_rows(raw[at], width).to(device)
            here = np.pad(keys[at], (0, width - count))
            with torch.inference_mode(not any(s.differentiates for s in signals)):
                x = committee.task.transform(padded, committee.statistics)
            batch = Forward(
                committee, x, ids[at], here, raw=padded, rows=count, compile=options.compile
            )
            for name, value in compute(signals, batch).items():
                collected.setdefault(name, []).append(value[:count].cpu())
    return {name: whole(parts) for name, parts in collected.items()}


def whole(parts: Sequence[Tensor]) -> Tensor:
    """Return parts of one column as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def padded_rows(x: Tensor, rows: int) -> Tensor:
    """Return ``rows`` rows, zeros behind those of ``x``."""
    if len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])
