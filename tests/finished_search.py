"""A finished search without Ray: trained models in checkpoint folders, their trials in a real MLflow store."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.conftest import trial_config
from vadtune.artifacts.held_out_predictions import save_held_out
from vadtune.artifacts.model_folder import save_model
from vadtune.artifacts.training_state import save_state
from vadtune.data import IncompleteDataset
from vadtune.tracking.store import connect
from vadtune.tracking.writer import Tracker
from vadtune.training.population import Population
from vadtune.training.scoring import evaluate

RUN = "tiny-20250102-030405-abcd"
# Trial -> (what it searched, epochs, status, end); the last one fails after its first report.
TRIALS = {
    "trial-0001": ({"latent": 2}, 4, "FINISHED", "completed"),
    "trial-0002": ({"latent": 3}, 4, "FINISHED", "completed"),
    "trial-0003": ({"latent": 1, "layers": 0}, 1, "KILLED", "stopped by asha at epoch 1"),
    "trial-0004": ({"latent": 4}, 1, "FAILED", "diverged: train_loss became NaN or infinite in epoch 2"),
}


class FinishedSearch(NamedTuple):
    uri: str
    run_id: str
    checkpoints: Path
    scores: dict[str, float]


def finished_search(folder: Path, iris: IncompleteDataset) -> FinishedSearch:
    """Trains the trials in ``folder`` and logs them to ``folder/mlflow.db``."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(connect(uri), uri, "tiny", RUN, folder)
    tracker.start(params={"search.metric": "val_missing_rmse"}, tags={}, artifacts=[])
    ranking = {}
    for name, (model, epochs, status, end) in TRIALS.items():
        config = trial_config(model=model)
        population = Population([config], iris.train)
        population.train_until(epochs)
        ((scores, held_out, _),) = evaluate(population, iris.search_data)
        (fitted,) = population.models()
        checkpoint = folder / "tune" / name / "checkpoint_000000"
        described = fitted.with_metadata(iris.scaler, iris.feature_names)
        save_model(checkpoint / "model", described, metrics=scores)
        save_state(checkpoint, population.states()[0])
        save_held_out(checkpoint, held_out, iris.search_data.validation)
        tracker.start_trial(name, name, config.flat())
        tracker.log_metrics(name, scores, epoch=epochs)
        tracker.end_trial(name, status=status, end=end, checkpoint=str(checkpoint))
        ranking[name] = scores["val_missing_rmse"]
    tracker.finish(status="FINISHED", metrics={}, tags={}, artifacts={})
    return FinishedSearch(uri, tracker.run_id, folder / "tune", ranking)
