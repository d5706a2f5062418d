"""Whole chains on large tables: seconds, peak memory and size on disk of every command, with their growth exponents.

    python benchmarks/scale.py images [--rows 60000 ...] [--trials 16] [--epochs 20]
    python benchmarks/scale.py table --rows 10000 100000 1000000 --columns 50 [--kind parquet] [--trials 4]

``images``: IDX files of the shape of MNIST (28 x 28 pixels, smooth functions of 24 latents, with as many test images as
a sixth of the train images), searched by a search of networks with one hidden layer, exported, retested at three
ratios. ``table``: a low-rank table with a fifth of its cells missing, in a CSV or Parquet file; init, search, export,
and the same file imputed. Memory is the sum over all processes of a command, with Ray, of what each holds alone plus
its part of what they share (PSS); "x data" is that over the float32 values. Exponents are of the two largest sizes: 1
is growth with the rows. Files are kept in --folder. The last line is the largest exponent of the seconds.
"""

from __future__ import annotations

import argparse
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

SIDE, BLOCK = 28, 5_000


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    memory: float  # MB
    disk: float  # MB that its folder grew by


def decoded(rows: int, columns: int, latents: int, seed: int) -> Iterator[np.ndarray]:
    """Yields blocks of rows (b, columns), smooth functions of a few latents with some noise, of variance about 1."""
    fixed = np.random.default_rng(1)
    first = fixed.normal(size=(latents, 64)) / np.sqrt(latents)
    second = fixed.normal(size=(64, columns)) / 4
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        z = rng.normal(size=(min(BLOCK, rows - start), latents))
        yield np.tanh(1.5 * z @ first) @ second + 0.1 * rng.normal(size=(len(z), columns))


def write_images(folder: Path, rows: int) -> None:
    """Writes the four IDX files of MNIST."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", rows), ("t10k", rows // 6))):
        with (raw / f"{name}-images-idx3-ubyte").open("wb") as file:
            file.write(struct.pack(">IIII", 2051, count, SIDE, SIDE))
            for block in decoded(count, SIDE * SIDE, 24, seed):
                file.write((255 / (1 + np.exp(-1.5 * block))).astype(np.uint8).tobytes())
        labels = struct.pack(">II", 2049, count) + bytes(count)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)


def write_table(path: Path, rows: int, columns: int) -> None:
    """Writes a table with a fifth of its cells missing."""
    import pandas as pd

    hide = np.random.default_rng(2)
    names = [f"x{index}" for index in range(columns)]
    frames = (
        pd.DataFrame(np.where(hide.random(block.shape) < 0.2, np.nan, block).astype(np.float32), columns=names)
        for block in decoded(rows, columns, 8, 0)
    )
    if path.suffix == ".csv":
        for index, frame in enumerate(frames):
            frame.to_csv(path, mode="a" if index else "w", header=index == 0, index=False, float_format="%.6g")
    else:
        pd.concat(frames).to_parquet(path, index=False)


def search_of(data: dict[str, object], trials: int, epochs: int) -> dict[str, object]:
    """Returns a search of networks with one hidden layer."""
    return {
        "name": "scale",
        "data": data,
        "model": {"latent": {"logint": [8, 32]}, "layers": 1, "hidden": 128},
        "train": {
            "epochs": epochs,
            "batch_size": 256,
            "kl_weight": {"loguniform": [0.0005, 0.2]},
            "net_lr": {"loguniform": [5e-4, 1e-2]},
            "latent_lr": {"loguniform": [0.02, 0.3]},
        },
        "infer": {"steps": 100, "lr": {"loguniform": [0.05, 0.3]}},
        "search": {"samples": trials, "sampler": "tpe", "scheduler": "asha", "seed": 0},
    }


def processes_under(root: int) -> list[int]:
    """Returns a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def memory_of(processes: list[int]) -> float:
    """Returns the memory of processes in MB; what several share is counted once (PSS)."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def size_of(folder: Path) -> float:
    """Returns the size of the files in a folder in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def measured(folder: Path, *command: str) -> Cost:
    """Runs a vadtune command in a folder and returns what it took."""
    before, began, peak = size_of(folder), time.perf_counter(), 0.0
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "vadtune", *command], cwd=folder, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, memory_of(processes_under(process.pid)))
            time.sleep(0.3)
    if process.returncode:
        raise SystemExit(f"vadtune {' '.join(command)}: exit {process.returncode}, see {folder / command[0]}.log")
    return Cost(time.perf_counter() - began, peak, size_of(folder) - before)


def commands(args: argparse.Namespace, folder: Path, rows: int) -> Iterator[tuple[str, ...]]:
    """Writes the data of a size and yields the commands to measure."""
    if args.what == "images":
        write_images(folder, rows)
        data: dict[str, object] = {"source": "mnist", "data_dir": str(folder)}
    else:
        table = f"table.{args.kind}"
        write_table(folder / table, rows, args.columns)
        yield "init", table, "--out", "init.yaml"
        data = {"source": "file", "path": table}
    data["missing"] = {"mechanism": "mcar", "ratio": 0.5 if args.what == "images" else 0.2, "seed": 0}
    (folder / "scale.yaml").write_text(yaml.safe_dump(search_of(data, args.trials, args.epochs), sort_keys=False))
    yield "search", "scale.yaml"
    yield "export", "scale", "--out", "best"
    yield "retest", "best", "--ratios", "0.3,0.5,0.7", "--seeds", "1"
    if args.what == "table":
        yield "impute", "best", table, "--out", f"filled.{args.kind}"


def main() -> None:
    """Measures the commands at every size and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "table"))
    parser.add_argument("--rows", type=int, nargs="+", default=[60_000])
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument("--kind", choices=("csv", "parquet"), default="csv")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None, help="default: a temporary folder")
    args = parser.parse_args()
    columns = SIDE * SIDE if args.what == "images" else args.columns
    costs: dict[str, list[Cost]] = {}
    print("command        rows   seconds  memory MB  x data   disk MB", flush=True)
    for rows in args.rows:
        folder = (args.folder or Path(tempfile.mkdtemp(prefix="vadtune-scale-"))) / str(rows)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        megabytes = 4 * rows * columns / 2**20
        for command in commands(args, folder, rows):
            cost = measured(folder, *command)
            costs.setdefault(command[0], []).append(cost)
            print(
                f"{command[0]:8} {rows:10} {cost.seconds:9.1f} {cost.memory:10.0f} {cost.memory / megabytes:7.1f} "
                f"{cost.disk:9.1f}",
                flush=True,
            )
    if len(args.rows) < 2:
        return
    growth = math.log(args.rows[-1] / args.rows[-2])
    print("growth exponents of the two largest: command, seconds, memory, disk")
    worst = 0.0
    for name, (*_, one, other) in costs.items():
        exponents = [math.log(max(b, 1e-3) / max(a, 1e-3)) / growth for a, b in zip(one, other, strict=True)]
        worst = max(worst, exponents[0])
        print(f"{name:8} " + " ".join(f"{exponent:6.2f}" for exponent in exponents))
    print(f"largest exponent of the seconds: {worst:.2f}")


if __name__ == "__main__":
    main()
