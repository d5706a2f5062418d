"""Large tables: reading, init and load_dataset against pandas' reading, and imputing at several numbers of rows.

    python benchmarks/tables.py                        # 1,000,000 x 50
    python benchmarks/tables.py 100000 100 --impute-rows 10000 100000

Every measurement is a process of its own, in turn with pandas, after its imports; peak memory is that of the process,
interpreter and libraries included. The table has five latent dimensions, noise, and a tenth of its cells missing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

KINDS = ("csv", "parquet")


def write(folder: Path, rows: int, columns: int) -> None:
    """Writes table.csv and table.parquet."""
    import pandas as pd

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 5)) @ rng.normal(size=(5, columns)) + 0.3 * rng.normal(size=(rows, columns))
    x[rng.random(x.shape) < 0.1] = np.nan
    frame = pd.DataFrame(x, columns=[f"c{j}" for j in range(columns)])
    frame.to_parquet(folder / "table.parquet", index=False)
    frame.to_csv(folder / "table.csv", index=False, float_format="%.7g")


def measure(how: str, path: Path) -> dict[str, float]:
    """Does one thing with a table in this process; returns seconds, CPU seconds and the peak memory in MB."""
    import pandas as pd
    import pyarrow.parquet  # noqa: F401 - imported before the clock starts, for all

    from vadtune.cli import main
    from vadtune.data import SOURCES, load_dataset
    from vadtune.tables import read_table

    config = SOURCES["file"].model_validate({"source": "file", "path": str(path), "missing": {"ratio": 0.3}})
    began, cpu = time.perf_counter(), time.process_time()
    match how:
        case "pandas":
            pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        case "read":
            read_table(path)
        case "load_dataset":
            load_dataset(config)
        case "init":
            assert main(["init", str(path), "--out", str(path.with_suffix(f".{time.time_ns()}.yaml"))]) == 0
        case "impute":
            assert main(["impute", str(path.parent / "model"), str(path), "--out", str(path.with_stem("out"))]) == 0
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"s": seconds, "cpu": cpu, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_process(how: str, path: Path) -> dict[str, float]:
    """Returns the result of ``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--measure", how, "--path", str(path)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def train(folder: Path, table: Path) -> None:
    """Trains a small model on 2,000 rows of a table."""
    import pandas as pd

    from vadtune.cli import main

    pd.read_csv(table, nrows=2000).to_csv(folder / "few.csv", index=False)
    (folder / "trial.yaml").write_text(
        f"name: few\ndata: {{source: file, path: {folder / 'few.csv'}, missing: {{ratio: 0.3}}}}\n"
        "model: {latent: 5, hidden: 32, layers: 1}\ntrain: {epochs: 20}\ninfer: {steps: 10, start: zeros}\n"
    )
    assert main(["train", str(folder / "trial.yaml"), "--out", str(folder / "model")]) == 0


def main_() -> None:
    """Writes the tables, measures, and prints the ratios last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("columns", type=int, nargs="?", default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--impute-rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to write the tables (default: a temporary folder)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.path)))
        return
    with tempfile.TemporaryDirectory(prefix="vadtune-tables-", dir=args.folder) as scratch:
        folder = Path(scratch)
        write(folder, args.rows, args.columns)
        ratios = []
        for kind in KINDS:
            path, found = folder / f"table.{kind}", dict[str, list[dict[str, float]]]()
            for _ in range(args.rounds):
                for how in ("pandas", "read", "load_dataset", "init"):
                    found.setdefault(how, []).append(in_process(how, path))
            middle = {how: {key: median(run[key] for run in runs) for key in runs[0]} for how, runs in found.items()}
            data = args.rows * args.columns * 4 / 2**20
            for how, of in middle.items():
                print(f"{kind} {how}: {of['s']:.2f} s, CPU {of['cpu']:.2f} s, peak {of['mb']:.0f} MB", flush=True)
                time_ratio, cpu_ratio = (of[key] / middle["pandas"][key] for key in ("s", "cpu"))
                ratios.append(
                    f"{kind} {how}: {time_ratio:.2f} x pandas' time, {cpu_ratio:.2f} x its CPU time, "
                    f"{of['mb'] / data:.1f} x the float32 data"
                )
        for rows in args.impute_rows:
            part = folder / str(rows)
            part.mkdir()
            write(part, rows, args.columns)
            train(part, part / "table.csv")
            for kind in KINDS:
                run = in_process("impute", part / f"table.{kind}")
                ratios.append(f"{kind} impute {rows} rows: {rows / run['s']:.0f} rows/s, peak {run['mb']:.0f} MB")
        print("\n".join(ratios))


if __name__ == "__main__":
    main_()
