"""Comparison of searches over missing ratios: a search, an export and a retest for each file and ratio.

Everything of a cell, that is of one file at one ratio, stays in a folder of its own, so that a comparison that was
interrupted goes on where it stopped: what is done is not done again, a search in the middle is resumed.

    OUT/NAME-r0.3/search.yaml   the search of the cell
    OUT/NAME-r0.3/runs/RUN/     the search's own folder
    OUT/NAME-r0.3/best/         its ensemble
    OUT/NAME-r0.3/result.json   their scores at this ratio: the cell is done
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vadtune.artifacts.run_folder import run_folders
from vadtune.config.search_file import SearchFile, load_search
from vadtune.core.errors import ConfigError, ModelFolderError, SearchError
from vadtune.core.files import write_atomically
from vadtune.ensemble.export import export_best
from vadtune.evaluation.retest import run_retest
from vadtune.search.driver.ray_start import local_ray
from vadtune.search.driver.resources import check_resources
from vadtune.search.driver.run import resume_search
from vadtune.search.driver.start import start_search
from vadtune.tracking import connect
from vadtune.tracking.queries import find_results

logger = logging.getLogger(__name__)

_SEARCH, _RESULT = "search.yaml", "result.json"


@dataclass(frozen=True)
class Cell:
    """One file at one ratio.

    Attributes:
        name: Of the file's search.
        ratio: The missing ratio, of training and test, or of test alone where training is complete.
        search: The file's search at this ratio, under a name of its own.
        folder: Where everything of the cell is kept.
    """

    name: str
    ratio: float
    search: SearchFile
    folder: Path

    @property
    def trained_on_complete(self) -> bool:
        """Whether train rows have nothing hidden (the paper's adversarial case)."""
        train = self.search.data.train_missing
        return train is not None and train.ratio == 0

    @property
    def family(self) -> str:
        """The model family, ``mixed`` where it is searched."""
        searched = "model.family" in self.search.domains
        return "mixed" if searched else self.search.trial_config({}).model.family


@dataclass(frozen=True)
class Comparison:
    """How a comparison ended.

    Attributes:
        rows: For each cell that is done: what was searched, and the errors of its ensemble.
        failures: What went wrong, by the name of the search; a cell without a model has no row.
        interrupted: The name of the search that Ctrl-C stopped, or None.
    """

    rows: list[dict[str, object]]
    failures: dict[str, str]
    interrupted: str | None


class _Settings(NamedTuple):
    """What a cell's result depends on beside its search."""

    ensemble: str
    seeds: list[int]


def plan(
    files: Sequence[Path],
    overrides: Sequence[str],
    ratios: Sequence[float],
    out: Path,
    vary: Sequence[str] = (),
) -> list[Cell]:
    """Returns the cells of a comparison, file by file.

    Args:
        files: Search files.
        overrides: Of each file.
        ratios: Missing ratios.
        out: The folder of the comparison.
        vary: ``key.path=value,value,...``: each file is taken once with every combination of these values. What
            belongs to one of them is added to it, as in ``model.family=vad,vae+infer.steps=0``.

    Raises:
        ConfigError: A file has problems, asks for more than the machine has, or two have the same name.
        SearchError: The folder holds a cell of this name that another file or other overrides made.
    """
    lines = [
        (file, [*overrides, *itertools.chain(*(changes for _, changes in values))], [name for name, _ in values])
        for file in files
        for values in itertools.product(*map(_values, vary))
    ]
    names = [
        "-".join([load_search(file, changed).name, *(value for value in values if value != "null")])
        for file, changed, values in lines
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"name: searches that are compared need names of their own, got '{twice[0]}' twice; change one"
        )
    cells = []
    for (file, changed, _), name in zip(lines, names, strict=True):
        for ratio in ratios:
            own = f"{name}-r{ratio:g}"
            search = load_search(file, [*changed, f"data.missing.ratio={ratio!r}", f"name={own}"])
            check_resources(search.search)
            cells.append(Cell(name, ratio, search, out / own))
    for cell in cells:
        before = cell.folder / _SEARCH
        if before.exists() and before.read_text() != cell.search.to_yaml():
            raise SearchError(
                f"{cell.folder}: must hold this search, but holds one of another {cell.name} file or other overrides; "
                "name another folder by --out, or delete it"
            )
    return cells


def _values(vary: str) -> list[tuple[str, list[str]]]:
    """Returns the name of each value, and the overrides it stands for."""
    key, equals, values = vary.partition("=")
    parts = [value.split("+") for value in values.split(",")]
    if not key or not equals or not all(map(all, parts)) or not all("=" in more for _, *rest in parts for more in rest):
        raise ConfigError(f"--vary: takes key.path=value,value+other.key=value,..., got '{vary}'; correct it")
    return [(value, [f"{key}={value}", *rest]) for value, *rest in parts]


def run_comparison(
    cells: Sequence[Cell], *, ensemble: str, seeds: Sequence[int], uri: str, progress: Callable[[str], None]
) -> Comparison:
    """Runs the cells that are not done, in one local Ray.

    Args:
        cells: From ``plan``.
        ensemble: How a search's models are put together; see export.
        seeds: Mask seeds of the retest.
        uri: The MLflow store.
        progress: Is told what is being done.

    Raises:
        TrackingError: The store does not answer; nothing was started.
        SearchError: A cell's result is damaged, or its search is running in another process.
    """
    settings = _Settings(ensemble, list(seeds))
    rows: list[dict[str, object]] = []
    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        started = False
        for number, cell in enumerate(cells, start=1):
            result = _read_result(cell, settings)
            if result is not None:
                rows.append(result)
                continue
            progress(f"{number} of {len(cells)}: {cell.search.name}")
            if not started:  # it takes seconds, which a comparison that is done need not pay
                connect(uri)
                stack.enter_context(local_ray())
                started = True
            run, failed, interrupted = _search(cell, uri)
            if interrupted:
                return Comparison(rows, failures, run)
            failures |= {f"{cell.search.name} {trial}": reason for trial, reason in failed.items()}
            try:
                rows.append(_retest(cell, run, settings, uri))
            except ModelFolderError as error:  # no trial has a model; other cells have
                failures[cell.search.name] = str(error)
    return Comparison(rows, failures, None)


def _search(cell: Cell, uri: str) -> tuple[str, dict[str, str], bool]:
    """Completes the cell's search; returns its run, why trials failed, and whether it was interrupted."""
    write_atomically(cell.folder / _SEARCH, cell.search.to_yaml().encode())
    storage = cell.folder / "runs"
    runs = run_folders(storage)
    if runs:
        resumed = resume_search(runs[-1].absolute(), tracking_uri=uri)
        if resumed is None:
            return runs[-1].name, {}, False
        return resumed.run, resumed.failures, resumed.interrupted
    outcome = start_search(cell.search, storage=storage, tracking_uri=uri)
    return outcome.run, outcome.failures, outcome.interrupted


def _retest(cell: Cell, run: str, settings: _Settings, uri: str) -> dict[str, object]:
    """Exports and retests the cell's best models; returns and keeps their row."""
    search, trials, metric = find_results(run, uri)
    best = cell.folder / "best"
    export_best(
        search,
        trials,
        metric=metric,
        out=best,
        ensemble=settings.ensemble,
        # Where train rows miss other cells than the others, training on these too would be another experiment.
        refit="train+validation" if cell.search.data.train_missing is None else "none",
        regress=False,  # the models are compared, and not what else may go with them
        overwrite=True,
    )
    retest = run_retest(best, [cell.ratio], settings.seeds, store_masks=False, baselines=[])
    (summary,) = [row for row in retest.summary() if row["method"] == retest.headline.name]
    scores = retest.headline.scores["missing_rmse"][0]
    row: dict[str, object] = {
        "search": cell.name,
        "source": retest.source,
        "family": cell.family,
        "trained_on": "complete rows" if cell.trained_on_complete else "the same ratio",
        "missing_ratio": cell.ratio,
        "run": run,
        "trials": len(trials),
        "units": retest.units,
        **{key: value for key, value in summary.items() if key not in ("kind", "missing_ratio")},
        "missing_rmse_lowest": float(scores.min()),
        "missing_rmse_highest": float(scores.max()),
    }
    masks = [entry for entry in retest.per_mask() if entry["method"] == retest.headline.name]
    result = {**settings._asdict(), "row": row, "masks": masks}
    write_atomically(cell.folder / _RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return row


def _read_result(cell: Cell, settings: _Settings) -> dict[str, object] | None:
    """Returns the cell's row if it is done with these settings, else None."""
    try:
        result: dict[str, Any] = json.loads((cell.folder / _RESULT).read_text())
        same = all(result[name] == value for name, value in settings._asdict().items())
        return dict(result["row"]) if same else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SearchError(
            f"{cell.folder / _RESULT}: cannot be read ({error}); delete it, and the cell is retested"
        ) from error
