"""Compares the imputation error of a search's export with common imputers, on identical splits and masks.

    python benchmarks/accuracy.py --tables digits,breast_cancer --out accuracy                # all methods
    python benchmarks/accuracy.py --methods mean,knn,ppca --out accuracy --jobs 2             # some peers only
    python benchmarks/accuracy.py --methods vadtune --samples 64 --out accuracy               # vadtune only
    python benchmarks/accuracy.py --methods hyperimpute,miwae,gain --hyperimpute-python env/bin/python --out accuracy
    python benchmarks/accuracy.py --methods none --out accuracy                               # the table only

The task of a cell (table, ratio r, mask seed s): rows are permuted by RandomState(0) and cut at 70 % and 85 % into
train, validation and test. Cell masks of part i (0, 1, 2) are RandomState(1000 s + 17 i + int(100 r)).rand(n, d) > r,
True where observed. The score is the RMSE over the missing cells of the test rows: digits in pixels of 0 to 1, tables
in standard deviations of the complete train rows (used for units only). Every method is fitted to the train rows or to
the observed cells of all rows including those to be imputed, whichever is better on held-out observed validation cells;
hyperparameters are chosen likewise.

Results are appended to OUT/results.jsonl and not computed again. Printed, and written to OUT/accuracy.md and
OUT/accuracy.png: every cell with its standard error over mask seeds, and a summary line last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: matrices are small, and jobs share the cores

import numpy as np
from _peers import PEERS, Rows, Tuned, tuned

from vadtune.core.metrics import score
from vadtune.data import SOURCES, DataConfig

ROOT = Path(__file__).resolve().parent.parent
OURS = "vadtune"
PLUGINS = ("hyperimpute", "miwae", "gain")
ALIASES = {"bc": "breast_cancer"}


class Key(NamedTuple):
    """Identifies a result."""

    table: str
    ratio: float
    seed: int
    method: str


@dataclass(frozen=True)
class Task:
    """One table under the masks of one ratio and mask seed.

    Attributes:
        rows: The input of the methods.
        truth: The test rows (n, d), in the units of the score; NaN where a cell is missing in the table itself.
        cells: bool (n, d), the missing cells to score.
        offset: (d,); values in the units of the score are (source value - offset) / scale.
        scale: (d,), see ``offset``.
    """

    rows: Rows
    truth: np.ndarray
    cells: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    def rmse(self, x_hat: np.ndarray) -> float:
        """Returns the error of an imputation of the test rows, in the units of the score."""
        return score(x_hat, self.truth, self.cells).rmse


def data_section(table: str) -> dict[str, Any]:
    """Returns the data section of a search for a source's name or a table's path."""
    name = ALIASES.get(table, table)
    if name in SOURCES:
        return {"source": name}
    return {"source": "file", "path": str(Path(table).absolute())}


def make_task(table: str, ratio: float, seed: int) -> Task:
    """Returns the task of a cell."""
    section = data_section(table)
    raw = SOURCES[section["source"]].model_validate(section).load()
    return task_of(np.asarray(raw.x, dtype=np.float64), ratio, seed, standardise=raw.standardise)


def task_of(x: np.ndarray, ratio: float, seed: int, *, standardise: bool) -> Task:
    """Returns the task of a table (n, d), NaN where the table itself has missing cells."""
    n, d = x.shape
    order = np.random.RandomState(0).permutation(n)
    parts = np.split(x[order], [int(0.7 * n), int(0.85 * n)])
    masks = [
        np.random.RandomState(1000 * seed + 17 * part + int(ratio * 100)).rand(*rows.shape) > ratio
        for part, rows in enumerate(parts)
    ]
    offset, scale = np.zeros(d), np.ones(d)
    if standardise:
        offset, deviation = np.nanmean(parts[0], axis=0), np.nanstd(parts[0], axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
    parts = [(rows - offset) / scale for rows in parts]
    masked = [np.where(mask, rows, np.nan) for rows, mask in zip(parts, masks, strict=True)]
    return Task(Rows(*masked), parts[2], ~masks[2] & ~np.isnan(parts[2]), offset, scale)


def run_peer(key: Key) -> dict[str, Any]:
    """Runs a peer and returns its result."""
    task = make_task(key.table, key.ratio, key.seed)
    start = time.perf_counter()
    found = tuned(PEERS[key.method], task.rows, key.seed)
    return _result(key, task, found, time.perf_counter() - start)


def run_plugin(key: Key, python: Path, limit: float) -> dict[str, Any]:
    """Runs a plugin of hyperimpute, with the Python of another environment, and returns its result.

    It imputes all rows at once, with its default settings, which for hyperimpute is a search.
    """
    task = make_task(key.table, key.ratio, key.seed)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        given, imputed = Path(scratch) / "given.npy", Path(scratch) / "imputed.npy"
        np.save(given, np.concatenate(task.rows))
        script = Path(__file__).with_name("hyperimpute_peer.py")
        command = [str(python), str(script), key.method, str(given), str(imputed), str(key.seed)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, check=True, timeout=limit, env=environment, stdout=sys.stderr)
        x_hat = np.load(imputed)[-len(task.truth) :]
    return _result(key, task, Tuned(x_hat, "all rows"), time.perf_counter() - start)


def _result(key: Key, task: Task, found: Tuned, seconds: float) -> dict[str, Any]:
    return {**key._asdict(), "rmse": task.rmse(found.x_hat), "choice": found.choice, "seconds": round(seconds, 2)}


class Ours:
    """Runs search, export and imputation for one cell after another, with one Ray and one MLflow store."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = Path(args.out).absolute() / args.label
        self.uri = f"sqlite:///{self.folder / 'mlflow.db'}"

    def search_of(self, key: Key, cell: Path) -> Any:
        """Returns the search of a cell: from ``--search``, else as ``vadtune init`` writes it for the table."""
        from vadtune.config import load_search

        data = data_section(key.table)
        file = self.args.search
        if file is None:
            file = cell / "search.yaml"
            name = data.get("path", data["source"])
            _vadtune("init", name, f"data.missing.seed={key.seed}", "--ratio", f"{key.ratio!r}", "--out", str(file))
        overrides = [f"data.{option}={json.dumps(value)}" for option, value in data.items()]
        overrides += [f"data.missing.ratio={key.ratio!r}", f"data.missing.seed={key.seed}", f"name={cell.name}"]
        if self.args.samples:
            overrides.append(f"search.samples={self.args.samples}")
        return load_search(file, [*overrides, *self.args.override])

    def run(self, key: Key) -> dict[str, Any]:
        """Runs a cell and returns its result."""
        from vadtune.ensemble.model_average import ModelAverage
        from vadtune.search.driver.start import start_search

        cell = self.folder / f"{Path(key.table).stem}-r{key.ratio:g}-s{key.seed}"
        shutil.rmtree(cell, ignore_errors=True)  # from an interrupted run
        cell.mkdir(parents=True)
        task, search = make_task(key.table, key.ratio, key.seed), self.search_of(key, cell)
        check_same_task(search.data, task)
        start = time.perf_counter()
        outcome = start_search(search, storage=cell / "runs", tracking_uri=self.uri)
        searched = time.perf_counter()
        if outcome.interrupted:
            raise KeyboardInterrupt
        options = shlex.split(self.args.export)
        _vadtune("export", search.name, *options, "--tracking-uri", self.uri, "--out", str(cell / "best"))
        exported = time.perf_counter()
        x = task.rows.test * task.scale + task.offset
        x_hat = (ModelAverage.load(cell / "best").fill(x).x - task.offset) / task.scale
        end = time.perf_counter()
        if not self.args.keep:
            shutil.rmtree(cell)
        choice = f"{search.search.samples} trials, export {self.args.export}"
        times = {"search": searched - start, "export": exported - searched, "impute": end - exported}
        result = _result(key, task, Tuned(x_hat, choice), end - start)
        return {**result, **{f"{name}_seconds": round(value, 2) for name, value in times.items()}}


def _vadtune(*command: str) -> None:
    """Runs a vadtune command in this process.

    Raises:
        SystemExit: The command failed.
    """
    from vadtune import cli

    with contextlib.redirect_stdout(sys.stderr):
        code = cli.main(command)
    if code != 0:
        raise SystemExit(f"accuracy: vadtune {shlex.join(command)} ended with {code}")


def check_same_task(config: DataConfig, task: Task) -> None:
    """Checks that a search has the rows and masks of the task.

    Raises:
        SystemExit: Rows or masks differ.
    """
    from vadtune.data import load_dataset

    dataset = load_dataset(config)
    test = dataset.test_part(config.missing.ratio, config.missing.seed)
    for expected, part in zip(task.rows, (dataset.train, dataset.validation, test), strict=True):
        values = (dataset.scaler.inverse(part.x) - task.offset) / task.scale
        if not np.array_equal(~np.isnan(expected), part.mask) or not np.allclose(values, expected, 1e-4, 1e-4, True):
            raise SystemExit(f"accuracy: a search of source {config.source} has other rows or masks than the task")


class Results:
    """The results in a folder: one JSON line each, in a file that is only appended to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "results.jsonl"

    def read(self) -> list[dict[str, Any]]:
        """Returns all results; a truncated line is skipped."""
        found: dict[Key, dict[str, Any]] = {}
        for line in self._file.read_text().splitlines() if self._file.exists() else []:
            with contextlib.suppress(ValueError):
                result = json.loads(line)
                found[key_of(result)] = result
        return list(found.values())

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Returns the keys without a result."""
        done = set(map(key_of, self.read()))
        return [key for key in keys if key not in done]

    def add(self, result: dict[str, Any]) -> None:
        """Appends a result in a single write, so that several processes may do so."""
        before = self._file.read_bytes() if self._file.exists() else b""
        end = "\n" if before and not before.endswith(b"\n") else ""  # after a truncated line
        with self._file.open("a") as file:
            file.write(end + json.dumps(result) + "\n")


def key_of(result: dict[str, Any]) -> Key:
    """Returns the key of a result."""
    return Key(result["table"], result["ratio"], result["seed"], result["method"])


class Cell(NamedTuple):
    """The scores of all methods on one table at one missing ratio.

    Attributes:
        table: Name of the table.
        ratio: Missing ratio.
        seeds: Mask seeds that every method has results for.
        mean: Mean RMSE of each method over the seeds.
        error: Standard error of each mean; NaN with a single seed.
        best_peer: The peer of the lowest mean, or None.
        ratio_to_best: vadtune's mean divided by the best peer's; None if either is missing.
        difference: Mean over the seeds of vadtune's RMSE minus the best peer's.
        difference_error: Standard error of the difference, paired by seed.
        outcome: ``won`` or ``lost`` if the difference exceeds its standard error, else ``tied``; empty if either is
            missing, and with a single seed.
    """

    table: str
    ratio: float
    seeds: list[int]
    mean: dict[str, float]
    error: dict[str, float]
    best_peer: str | None
    ratio_to_best: float | None = None
    difference: float = np.nan
    difference_error: float = np.nan
    outcome: str = ""


def summarise(results: Sequence[dict[str, Any]], ours: str) -> list[Cell]:
    """Returns the cells, by table and ratio, over the mask seeds that every method of the cell has."""
    cells = []
    for table, ratio in dict.fromkeys((str(row["table"]), float(row["ratio"])) for row in _sorted(results)):
        rmse: dict[str, dict[int, float]] = {}
        for row in results:
            if (row["table"], row["ratio"]) == (table, ratio):
                rmse.setdefault(row["method"], {})[row["seed"]] = row["rmse"]
        seeds = sorted(set.intersection(*(set(of_seed) for of_seed in rmse.values())))
        if not seeds:
            continue
        scores = {method: np.array([of_seed[seed] for seed in seeds]) for method, of_seed in rmse.items()}
        mean = {method: float(values.mean()) for method, values in scores.items()}
        error = {method: _standard_error(values) for method, values in scores.items()}
        best = min((method for method in mean if method in (*PEERS, *PLUGINS)), key=mean.__getitem__, default=None)
        cell = Cell(table, ratio, seeds, mean, error, best)
        if best is not None and ours in mean:
            difference = scores[ours] - scores[best]
            middle, spread = float(difference.mean()), _standard_error(difference)
            outcome = "won" if middle < -spread else "lost" if middle > spread else "tied" if spread >= 0 else ""
            cell = cell._replace(
                ratio_to_best=mean[ours] / mean[best], difference=middle, difference_error=spread, outcome=outcome
            )
        cells.append(cell)
    return cells


def _sorted(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    tables = list(dict.fromkeys(row["table"] for row in results))
    return sorted(results, key=lambda row: (tables.index(row["table"]), row["ratio"]))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def summary_line(cells: Sequence[Cell]) -> str:
    """Returns the mean ratio to the best peer, and how many cells were won, tied and lost."""
    compared = [cell for cell in cells if cell.ratio_to_best is not None]
    if not compared:
        return f"summary: {len(cells)} cells, none with both our side and a peer"
    counts = {outcome: sum(cell.outcome == outcome for cell in compared) for outcome in ("won", "tied", "lost")}
    counts["of a single seed"] = sum(not cell.outcome for cell in compared)
    ratio = np.mean([cell.ratio_to_best for cell in compared])
    return (
        f"summary: mean ratio to the best peer {ratio:.3f}; of {len(compared)} cells {counts['won']} won, "
        f"{counts['tied']} tied within one standard error, {counts['lost']} lost"
        + (f", {counts['of a single seed']} of a single seed" if counts["of a single seed"] else "")
    )


def to_markdown(cells: Sequence[Cell], methods: Sequence[str], ours: str) -> str:
    """Returns a Markdown table: a line per cell, the best method in bold."""
    head = ["table", "r", "seeds", *methods, "ratio to best peer", "difference", ""]
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        winner = min(cell.mean, key=cell.mean.__getitem__)
        scores = []
        for method in methods:
            text = f"{cell.mean[method]:.4f} ± {cell.error[method]:.4f}" if method in cell.mean else "-"
            scores.append(f"**{text}**" if method == winner else text)
        compared = ["-", "-", ""]
        if cell.ratio_to_best is not None:
            difference = f"{cell.difference:+.4f} ± {cell.difference_error:.4f}"
            compared = [f"{cell.ratio_to_best:.3f} ({cell.best_peer})", difference, cell.outcome]
        lines.append([cell.table, f"{cell.ratio:g}", str(len(cell.seeds)), *scores, *compared])
    note = (
        f"RMSE over missing test cells ± standard error over mask seeds; difference: {ours} less the best peer, paired."
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}\n\n{summary_line(cells)}\n"


def plot(cells: Sequence[Cell], methods: Sequence[str], ours: str, path: Path) -> None:
    """Writes a PNG: a column per table, the errors of all methods above, ratios to the best peer below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tables = list(dict.fromkeys(cell.table for cell in cells))
    figure, axes = plt.subplots(
        2, len(tables), figsize=(5.2 * len(tables) + 1.8, 7), squeeze=False, sharex="col", layout="constrained"
    )
    colours = plt.get_cmap("tab10")
    for column, table in enumerate(tables):
        above, below = axes[:, column]
        of_table = [cell for cell in cells if cell.table == table]
        worst_sensible = max((cell.mean["mean"] for cell in of_table if "mean" in cell.mean), default=None)
        for number, method in enumerate(methods):
            there = [cell for cell in of_table if method in cell.mean]
            style: dict[str, Any] = {"color": "black" if method == ours else colours(number % 10)}
            style |= {
                "label": method,
                "linewidth": 2.6 if method == ours else 1.2,
                "marker": "o",
                "markersize": 4,
                "capsize": 2,
            }
            x, y = [cell.ratio for cell in there], [cell.mean[method] for cell in there]
            above.errorbar(x, y, [cell.error[method] for cell in there], **style)
            compared = [(cell.ratio, cell.mean[method] / cell.mean[cell.best_peer]) for cell in there if cell.best_peer]
            below.plot(*zip(*compared, strict=True), **{key: style[key] for key in style if key != "capsize"})
        if worst_sensible is not None:
            above.set_ylim(0, 1.15 * worst_sensible)  # diverged methods are outside the plot
        below.set_ylim(0.8, 1.6)
        below.axhline(1, color="0.5", linewidth=0.8)
        above.set_title(table)
        above.set_ylabel("RMSE, missing test cells")
        below.set_ylabel("ratio to the best peer")
        below.set_xlabel("missing ratio")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run_all(args: argparse.Namespace, methods: Sequence[str]) -> None:
    """Computes the missing results and stores each as soon as it is known."""
    kept = Results(args.out)
    cells = [(table, r, s) for s in range(args.seeds) for table in args.tables for r in args.ratios]
    todo = kept.missing([Key(*cell, method) for cell in cells for method in methods if method != OURS])
    done = iter(range(1, len(todo) + 1))

    def keep(result: dict[str, Any], total: int, number: int) -> None:
        kept.add(result)
        print(
            f"{number} of {total}: {result['table']} r={result['ratio']:g} s={result['seed']} {result['method']} "
            f"{result['rmse']:.4f} ({result['choice']}, {result['seconds']:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    with ProcessPoolExecutor(args.jobs) as pool:
        waiting = {
            pool.submit(run_plugin, key, args.hyperimpute_python, args.plugin_limit)
            if key.method in PLUGINS
            else pool.submit(run_peer, key): key
            for key in todo
        }
        for future in as_completed(waiting):
            try:
                keep(future.result(), len(todo), next(done))
            except (subprocess.SubprocessError, ValueError, np.linalg.LinAlgError) as error:
                print(f"{waiting[future]}: failed: {error}", file=sys.stderr, flush=True)
    if OURS in methods:
        ours = kept.missing([Key(*cell, args.label) for cell in cells])
        with _ray() if ours else contextlib.nullcontext():
            side = Ours(args)
            for number, key in enumerate(ours, start=1):
                keep(side.run(key), len(ours), number)


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """Starts one local Ray for all searches, since starting it takes seconds."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from vadtune.search.driver.ray_start import local_ray

    with local_ray():
        yield


def main(argv: Sequence[str] | None = None) -> None:
    """Computes missing results, then prints the table and the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*PEERS, *PLUGINS, OURS]
    parser.add_argument("--tables", type=_listed, default=["digits", "breast_cancer"], help="sources or files")
    parser.add_argument("--ratios", type=_ratios, default=_ratios("0.1,0.3,0.5,0.7,0.9"), help="missing ratios")
    parser.add_argument("--seeds", type=int, default=5, help="mask seeds, from 0")
    default = [*PEERS, OURS]
    parser.add_argument("--methods", type=_listed, default=default, help=f"of {', '.join(names)}; or none")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--jobs", type=int, default=1, help="peers at a time")
    parser.add_argument("--hyperimpute-python", type=Path, help="Python of an environment with hyperimpute")
    parser.add_argument("--plugin-limit", type=float, default=900, help="seconds a plugin of hyperimpute may take")
    parser.add_argument("--search", type=Path, help="search file for vadtune (default: as vadtune init writes it)")
    parser.add_argument("--samples", type=int, help="trials of a search (default: the number in its file)")
    parser.add_argument("--override", action="append", default=[], metavar="key.path=value", help="of the search file")
    parser.add_argument("--export", default="--ensemble greedy --refit all-observed", help="options of vadtune export")
    parser.add_argument("--label", default=OURS, help="name of vadtune's results, to compare several versions")
    parser.add_argument("--keep", action="store_true", help="keep searches and models")
    args = parser.parse_args(argv)
    args.tables = [ALIASES.get(table, table) for table in args.tables]
    methods = [] if args.methods == ["none"] else args.methods
    unknown = [name for name in methods if name not in names]
    if unknown:
        parser.error(f"--methods: takes {', '.join(names)} or none, got {', '.join(unknown)}")
    if set(methods) & set(PLUGINS) and args.hyperimpute_python is None:
        parser.error(f"--hyperimpute-python: is needed for {', '.join(PLUGINS)}")
    if args.seeds < 1 or args.jobs < 1:
        parser.error(f"--seeds, --jobs: take numbers above 0, got {args.seeds}, {args.jobs}")
    run_all(args, methods)
    chosen = set(args.tables), set(args.ratios), set(range(args.seeds))
    results = [
        row
        for row in Results(args.out).read()
        if row["table"] in chosen[0] and row["ratio"] in chosen[1] and row["seed"] in chosen[2]
    ]
    cells = summarise(results, args.label)
    there = {row["method"] for row in results}
    order = [*(name for name in [*PEERS, *PLUGINS] if name in there), *sorted(there - set(PEERS) - set(PLUGINS))]
    text = to_markdown(cells, order, args.label)
    (args.out / "accuracy.md").write_text(text)
    if cells:
        plot(cells, order, args.label, args.out / "accuracy.png")
    print(text, end="")


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _ratios(text: str) -> list[float]:
    return [float(part) for part in _listed(text)]


if __name__ == "__main__":
    main()
