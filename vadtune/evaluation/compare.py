"""Comparison of searches over missing ratios: a search, an export and a retest per search file and ratio.

All files of a cell, that is of one search file at one ratio, are in one folder, so that an interrupted comparison
resumes: finished cells are skipped, and an unfinished search is resumed.

    OUT/NAME-r0.3/search.yaml   the search of the cell
    OUT/NAME-r0.3/runs/RUN/     the run folder of the search
    OUT/NAME-r0.3/best/         its ensemble
    OUT/NAME-r0.3/result.json   scores of the ensemble at this ratio, written when the cell is finished
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vadtune.artifacts.run_folder import run_folders
from vadtune.config import SearchFile, load_search
from vadtune.core.errors import ConfigError, ModelFolderError, SearchError
from vadtune.core.files import write_atomically
from vadtune.core.reading import read_bounded
from vadtune.ensemble.export import export_best
from vadtune.evaluation.mask_options import MOST_ROWS
from vadtune.evaluation.retest import run_retest
from vadtune.search.driver.ray_start import local_ray
from vadtune.search.driver.resources import check_resources
from vadtune.search.driver.resume import resume_search
from vadtune.search.driver.start import start_search
from vadtune.tracking.run_log import find_results_here
from vadtune.tracking.store import connect

logger = logging.getLogger(__name__)

_SEARCH, _RESULT = "search.yaml", "result.json"


@dataclass(frozen=True)
class Cell:
    """One search file at one missing ratio.

    Attributes:
        name: Name of the file's search.
        ratio: Missing ratio of train and test rows, or of test rows alone where train rows are complete.
        search: The file's search at this ratio, under the name ``NAME-rRATIO``.
        folder: The folder of the cell.
    """

    name: str
    ratio: float
    search: SearchFile
    folder: Path

    @property
    def trained_on_complete(self) -> bool:
        """Whether no cell of the train rows is hidden (the adversarial case of the VAD paper)."""
        train = self.search.data.train_missing
        return train is not None and train.ratio == 0

    @property
    def family(self) -> str:
        """The model family, or ``mixed`` where the family is searched."""
        searched = "model.family" in self.search.domains
        return "mixed" if searched else self.search.trial_config({}).model.family


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        rows: A row per finished cell: what was searched, and the errors of its ensemble.
        failures: Messages by the name of the search or trial that failed; a search without a model has no row.
        interrupted: Name of the search that Ctrl-C stopped, or None.
    """

    rows: list[dict[str, object]]
    failures: dict[str, str]
    interrupted: str | None


def plan(
    files: Sequence[Path], overrides: Sequence[str], ratios: Sequence[float], out: Path, vary: Sequence[str] = ()
) -> list[Cell]:
    """Returns the cells of a comparison, ordered by file and ratio.

    Args:
        files: Search files.
        overrides: ``key.path=value`` texts that are applied to every file.
        ratios: Missing ratios.
        out: The folder of the comparison.
        vary: ``key.path=value,value,...``: each file is used once per combination of these values. Further overrides
            of one value are appended to it, as in ``model.family=vad,vae+infer.steps=0``.

    Raises:
        ConfigError: A file is not valid, needs more resources than the machine has, or two searches have one name.
        SearchError: The folder holds a cell of this name from another file or other overrides.
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
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"name: searches that are compared need different names, got '{twice[0]}' twice; change one")
    cells = []
    for (file, changed, _), name in zip(lines, names, strict=True):
        for ratio in ratios:
            cell_name = f"{name}-r{ratio:g}"
            search = load_search(file, [*changed, f"data.missing.ratio={ratio!r}", f"name={cell_name}"])
            check_resources(search.search)
            cells.append(Cell(name, ratio, search, out / cell_name))
    for cell in cells:
        stored = cell.folder / _SEARCH
        if stored.exists() and read_bounded(stored).decode(errors="replace") != cell.search.to_yaml():
            raise SearchError(
                f"{cell.folder}: must hold this search, but holds one of another {cell.name} file or other overrides; "
                "name another folder by --out, or delete it"
            )
    return cells


def _values(vary: str) -> list[tuple[str, list[str]]]:
    """Returns each value of a ``vary`` text with its overrides."""
    key, equals, values = vary.partition("=")
    parts = [value.split("+") for value in values.split(",")]
    if not key or not equals or not all(map(all, parts)) or not all("=" in more for _, *rest in parts for more in rest):
        raise ConfigError(f"--vary: takes key.path=value,value+other.key=value,..., got '{vary}'; correct it")
    return [(value, [f"{key}={value}", *rest]) for value, *rest in parts]


def run_comparison(
    cells: Sequence[Cell], *, ensemble: str, seeds: Sequence[int], uri: str, progress: Callable[[str], None]
) -> Comparison:
    """Runs the unfinished cells one after another, in one local Ray.

    Args:
        cells: From ``plan``.
        ensemble: ``greedy``, ``top:K`` or ``best``, see ``export_best``.
        seeds: Mask seeds of the retest.
        uri: The MLflow store.
        progress: Called with a line of text for each cell.

    Raises:
        TrackingError: The store does not answer; nothing was started.
        SearchError: A result.json is damaged, or another process runs the search of a cell.
    """
    settings = {
        "ensemble": ensemble,
        "seeds": list(seeds),
        "rows": MOST_ROWS,
    }  # stored with each result, which depends on them
    rows = [_read_result(cell, settings) for cell in cells]
    failures: dict[str, str] = {}
    interrupted = None
    if None in rows:  # starting Ray takes seconds
        connect(uri)
        with local_ray():
            for index, cell in enumerate(cells):
                if rows[index] is not None:
                    continue
                progress(f"{index + 1} of {len(cells)}: {cell.search.name}")
                run, failed, stopped = _search(cell, uri)
                if stopped:
                    interrupted = run
                    break
                failures |= {f"{cell.search.name} {trial}": reason for trial, reason in failed.items()}
                try:
                    rows[index] = _retest(cell, run, settings, uri)
                except ModelFolderError as error:  # no trial of this cell has a model; other cells may
                    failures[cell.search.name] = str(error)
    return Comparison([row for row in rows if row is not None], failures, interrupted)


def _search(cell: Cell, uri: str) -> tuple[str, dict[str, str], bool]:
    """Starts or resumes the cell's search; returns its run, messages of failed trials, and whether it was stopped."""
    write_atomically(cell.folder / _SEARCH, cell.search.to_yaml().encode())
    storage = cell.folder / "runs"
    if runs := run_folders(storage):
        resumed = resume_search(runs[-1].absolute(), tracking_uri=uri)
        if resumed is None:
            return runs[-1].name, {}, False
        return resumed.run, resumed.failures, resumed.interrupted
    outcome = start_search(cell.search, storage=storage, tracking_uri=uri)
    return outcome.run, outcome.failures, outcome.interrupted


def _retest(cell: Cell, run: str, settings: Mapping[str, Any], uri: str) -> dict[str, object]:
    """Exports and retests the cell's ensemble; writes result.json and returns its row."""
    search, trials, metric = find_results_here(run, uri, cell.folder / "runs")
    best = cell.folder / "best"
    export_best(
        search,
        trials,
        metric=metric,
        out=best,
        ensemble=settings["ensemble"],
        # Where train rows have another missing ratio, training on validation rows too would be another experiment.
        refit="train+validation" if cell.search.data.train_missing is None else "none",
        regress=False,  # only the models are compared
        overwrite=True,
    )
    retest = run_retest(best, [cell.ratio], settings["seeds"], store_masks=False, baselines=[], rows=settings["rows"])
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
    result = {**settings, "row": row, "masks": masks}
    write_atomically(cell.folder / _RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return row


def _read_result(cell: Cell, settings: Mapping[str, Any]) -> dict[str, object] | None:
    """Returns the cell's row if it was finished with these settings, else None."""
    try:
        result: dict[str, Any] = json.loads(read_bounded(cell.folder / _RESULT, 2**26))
        recorded = {"rows": MOST_ROWS, **result}  # version 0.1.0 scored all rows
        same = all(recorded[name] == value for name, value in settings.items())
        return dict(result["row"]) if same else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SearchError(
            f"{cell.folder / _RESULT}: cannot be read ({error}); delete it, so that the cell is retested"
        ) from error
