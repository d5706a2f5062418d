"""The command line: a table of mistakes, each told on one line with exit code 2 and nothing left behind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.finished_search import FinishedSearch
from vadtune.cli import COMMANDS, main
from vadtune.export import export_best
from vadtune.results import find_results

DIGITS = str(Path(__file__).parent.parent / "search_spaces" / "digits.yaml")

# command, and what its one line says: the rule, the value, the next step
MISTAKES = [
    ("serch", "invalid choice: 'serch'"),
    ("results", "the following arguments are required: EXPERIMENT"),
    ("search nofile.yaml", "nofile.yaml: cannot be read (No such file or directory); name an existing search file"),
    ("validate {digits} model.latnt=3", "model.latnt: unknown key 'latnt': did you mean 'latent'?"),
    ("validate {digits} train.epochs=many", "train.epochs: must be a valid integer, got 'many'"),
    ("validate {digits} train.net_lr={{uniform:[2,1]}}", "train.net_lr: uniform needs low < high, got [2, 1]"),
    ("validate {digits} model.latent={{choice:[]}}", "model.latent: choice needs at least one value, got an empty"),
    ("validate {digits} train.kl_weight={{loguniform:[0,1]}}", "loguniform needs low > 0, for logarithms, got [0, 1]"),
    ("validate {digits} model.hidden={{choice:[8],when:{{layrs:1}}}}", "its condition names an unknown parameter"),
    ("validate {digits} data.missing.ratio=1.5", "data.missing.ratio: must be less than 1, got 1.5"),
    ("validate {digits} search.metric=val_rmse", "search.metric: nobody reports it: unknown metric 'val_rmse'"),
    ("validate {digits} search.metric=train_loss", "search.metric: a search selects on held-out cells only"),
    ("validate {digits} epochs", "an override has the form key.path=value, got 'epochs'"),
    ("validate {digits} name=2024-99-99", "name: the value must be YAML, got '2024-99-99'"),
    ("validate {digits} name=Default", "name: takes a name other than that of MLflow's own experiment"),
    (
        'validate {digits} search.initial=[{{"train.net_lr":1}}]',
        "search.initial.0.train.net_lr: must lie in its domain",
    ),
    ("validate {dotted}", "model.latent: takes sections within sections, got a key with a dot"),
    ("train {config} data.holdout.fraction=0.9999", "leaves none in iris"),
    ("search {digits} search.cpus_per_trial=4096", "search.cpus_per_trial: must be at most the"),
    ("search {digits} --tracking-uri sqlite:///{file}", "must answer, got: "),
    ("search {digits} data.source=digit", "data.source: unknown source 'digit': did you mean 'digits'?"),
    ("search {digits} name=../x", "name: takes letters, digits, '.', '_' and '-'"),
    ("search {digits} --storage {file}/runs", "cannot be written"),
    ("search {digits} --tracking-uri file:///tmp/x", "a tracking store is named by a URI that starts with sqlite:///"),
    ("search {digits} --tracking-uri sqlite:////nowhere/x.db", "/nowhere/x.db cannot be written"),
    ("train {digits}", "one value each is needed, got domains for model.latent"),
    ("train {config} --out {export}", "{export}"),
    ("train {config} --device cuda:77", "--device: cuda:77 is not to be had here"),
    ("resume nowhere", "unknown search 'nowhere': there is none yet (in runs)"),
    ("sync nowhere", "unknown search 'nowhere': there is none yet (in runs)"),
    ("sync {export}", "holds no search to resume (run.json cannot be read"),
    ("resume {export}", "holds no search to resume (run.json cannot be read"),
    ("resume nowhere --storage s3://bucket/runs", "unknown search 'nowhere': there is none yet (in runs)"),
    ("list", "does not exist; run this where `vadtune search` ran"),
    ("list nosuch --tracking-uri {store}", "unknown experiment 'nosuch'"),
    ("search {digits} search.trial_timeout=never", "search.trial_timeout: takes a duration above 0"),
    ("search {digits} search.accelerator_type=A100", "search.accelerator_type: unknown type 'A100'"),
    ("search {digits} --address nonsense", "--address: a Ray cluster must run at nonsense, got: not host:port; start"),
    ("search {digits} --address 127.0.0.1:1", "a Ray cluster must run at 127.0.0.1:1, got: [Errno 111] Connection"),
    ("submit nofile.yaml --storage /s", "nofile.yaml: cannot be read"),
    ("submit {digits}", "the following arguments are required: --storage"),
    ("submit {digits} --storage /s --address auto", "takes the address of a job server such as http://127.0.0.1:8265"),
    ("submit {digits} --storage /s --address http://127.0.0.1:1", "the job server http://127.0.0.1:1 must do as asked"),
    ("submit {digits} --storage /s --tracking-uri http://me:pw@h", "must hold no secret, as a job's command is shown"),
    ("status --address http://127.0.0.1:1", "the job server http://127.0.0.1:1 must do as asked"),
    ("logs job --address http://127.0.0.1:1", "the job server http://127.0.0.1:1 must do as asked"),
    ("stop job --address http://127.0.0.1:1", "the job server http://127.0.0.1:1 must do as asked"),
    ("doctor --format", "unrecognized arguments: --format"),
    ("ui --tracking-uri {store} --host 0.0.0.0", "add --expose if that is meant"),
    ("results digits", "does not exist; run this where `vadtune search` ran"),
    ("results nosuch --tracking-uri {store}", "unknown experiment 'nosuch'"),
    ("results {experiment} --tracking-uri {store} --out {file}/x.csv", "cannot be written"),
    ("export {experiment} --tracking-uri {store} --top 0", "--top: takes a number of models above 0, got 0"),
    ("export {experiment} --tracking-uri {store} --top -3", "--top: takes a number of models above 0, got -3"),
    ("export {experiment} --tracking-uri {store} --out {file}/best", "cannot be written"),
    ("export {experiment} --tracking-uri {store} --out {file}", "must be a folder, and is a file"),
    ("retest nowhere", "nowhere: does not exist; write one with `vadtune export EXPERIMENT --out nowhere`"),
    ("retest {export} --ratios 0:1:0.1", "--ratios: takes ratios above 0 and below 1"),
    ("retest {export} --seeds 0", "--seeds: takes a number of masks above 0, got 0"),
    ("retest {export} --baselines tree", "--baselines: unknown baseline 'tree'"),
    ("retest {export} --out {file}/x", "cannot be written"),
    ("retest {incomplete}", "weights.safetensors"),
    ("retest {altered}", "config.yaml"),
    ("ui", "the store must exist, and does not; run `vadtune search` first"),
    ("ui --tracking-uri {store} --port 99999", "--port: takes a port from 1 to 65535, got 99999"),
    ("ui --tracking-uri {store} --port {busy}", "cannot be used (Address already in use); name another"),
]


@pytest.fixture(scope="module")
def places(search: FinishedSearch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the commands of the table name."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "file").write_text("a file, not a folder")
    (folder / "dotted.yaml").write_text("name: dotted\ndata: {source: iris}\nmodel.latent: {int: [1, 3]}\n")
    found = find_results("tiny", search.uri)
    (model,) = export_best(found.search, found.trials, metric=found.metric, top=1, out=folder / "export")
    for name in ("incomplete", "altered"):
        shutil.copytree(model.folder, folder / name)
    (folder / "incomplete" / "weights.safetensors").unlink()
    with (folder / "altered" / "config.yaml").open("a") as config:
        config.write("# one line more\n")
    return {
        "digits": DIGITS,
        "file": str(folder / "file"),
        "dotted": str(folder / "dotted.yaml"),
        "config": str(model.folder / "config.yaml"),
        "export": str(model.folder),
        "incomplete": str(folder / "incomplete"),
        "altered": str(folder / "altered"),
        "store": found.search.tracking_uri,
        "experiment": found.search.experiment,
    }


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_told_on_one_line(
    command: str,
    message: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = {**places, "busy": str(server.getsockname()[1])}
        try:
            code = main(command.format(**known).split())
        except SystemExit as exit_:  # how argparse ends
            code = int(exit_.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("vadtune: error: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert message.format(**known) in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_a_file_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["validate", DIGITS, "data.missing.ratio=2", "model.latnt=3", "train.kl_weight={loguniform: [0, 1]}"]) == 2
    )
    paths = {line.split(": ")[2] for line in capsys.readouterr().err.splitlines()}
    assert paths == {"data.missing.ratio", "model.latnt", "train.kl_weight"}


@pytest.mark.parametrize("path", sorted((Path(DIGITS).parent).glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_search_files_are_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(path)]) == 0
    assert "ok" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"example: vadtune {command} " in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(places: dict[str, str]) -> None:
    results = [sys.executable, "-m", "vadtune", "results", places["experiment"], "--tracking-uri", places["store"]]
    with subprocess.Popen(results, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
