"""The command line: a table of mistakes, each told on one line with exit code 2 and nothing left behind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.finished_search import FinishedSearch
from vadtune.cli import COMMANDS, main
from vadtune.ensemble.export import export_best
from vadtune.tracking.queries import find_results

DIGITS = str(Path(__file__).parent.parent.parent / "search_spaces" / "digits.yaml")

# command, and what its one line says: the rule, the value, the next step
MISTAKES = [
    ("serch", "unknown command 'serch': did you mean 'search'? valid: compare, configs, "),
    ("export {experiment} --tracking-uri {store} --trial trial-0009", "--trial: unknown trial 'trial-0009'"),
    ("export {experiment} --tracking-uri {store} --trial trial-0004", "--trial: needs a trial with a score, got"),
    ("export {experiment} --trial trial-0001 --ensemble best", "--trial: takes one trial and no ensemble"),
    ("results {experiment} --tracking-uri {store} --sort latnt", "--sort: unknown column 'latnt'"),
    ("results {experiment} --tracking-uri {store} --columns trial,x", "--columns: unknown column 'x'"),
    ("results {experiment} --tracking-uri {store} --top 0", "--top: takes a number of trials above 0, got 0"),
    ("results", "the following arguments are required: EXPERIMENT"),
    ("search digit", "FILE: unknown search file 'digit': did you mean 'digits'? valid: breast_cancer, digits, "),
    ("compare digits digit --out cmp", "FILE: unknown search file 'digit': did you mean 'digits'? valid: "),
    ("train digits", "one value each is needed, got domains for model.latent"),
    ("submit digits --storage /s --address http://127.0.0.1:1", "the job server http://127.0.0.1:1 must do as asked"),
    ("configs digits --out {export}", "must be new or empty, and is not; name another folder"),
    ("spaces digit", "NAME: unknown search file 'digit': did you mean 'digits'? valid: breast_cancer, digits, "),
    ("search nofile.yaml", "nofile.yaml: cannot be read (No such file or directory); name an existing search file"),
    ("validate {digits} model.latnt=3", "model.latnt: unknown key 'latnt': did you mean 'latent'?"),
    ("validate {digits} train.epochs=many", "train.epochs: must be a valid integer, got 'many'"),
    ("validate {digits} train.net_lr={{uniform:[2,1]}}", "train.net_lr: uniform needs low < high, got [2, 1]"),
    ("validate {digits} model.latent={{choice:[]}}", "model.latent: choice needs at least one value, got an empty"),
    ("validate {digits} train.kl_weight={{loguniform:[0,1]}}", "loguniform needs low > 0, for logarithms, got [0, 1]"),
    ("validate {digits} model.hidden={{choice:[8],when:{{layrs:1}}}}", "its condition names an unknown parameter"),
    ("validate {digits} model.head=projection model.skip=true", "model.skip: needs head plain, got"),
    ("validate {digits} data.missing.ratio=1.5", "data.missing.ratio: must be less than 1, got 1.5"),
    ("validate {digits} search.metric=val_rmse", "search.metric: is not reported: unknown metric 'val_rmse'"),
    ("validate {digits} search.metric=train_loss", "search.metric: a search selects on held-out cells only"),
    ("validate {digits} epochs", "an override has the form key.path=value, got 'epochs'"),
    ("validate {digits} name=2024-99-99", "name: the value must be YAML, got '2024-99-99'"),
    ("validate {digits} name=Default", "name: is the name of MLflow's default experiment; choose another"),
    (
        'validate {digits} search.initial=[{{"train.net_lr":1}}]',
        "search.initial.0.train.net_lr: must lie in its domain",
    ),
    ("init digit --out x.yaml", "SOURCE_OR_TABLE: unknown source 'digit': did you mean 'digits'?"),
    ("init nowhere.csv --out x.yaml", "nowhere.csv: cannot be read (No such file or directory); name an"),
    ("init digits", "the following arguments are required: --out"),
    ("init digits --out {digits}", "--out: takes a new file, got {digits}, which exists; name another"),
    ("init digits --out x.txt", "--out: takes a file that ends in .yaml, got x.txt; change the ending"),
    ("init digits --out {file}/x.yaml", "cannot be written"),
    ("init digits --out x.yaml --ratio 1", "--ratio: takes a share of cells above 0 and below 1, got 1.0"),
    ("init digits model.latent=3 --out x.yaml", "takes values of the data section, such as data.columns=[a, b], got"),
    ("init digits data.columns=[a] --out x.yaml", "data.columns: is an option of file, not of source 'digits'"),
    ("init mosi --out x.yaml", "data.path: is required by source 'mosi'; set data.path"),
    ("validate {dotted}", "model.latent: takes sections within sections, got a key with a dot"),
    ("train {config} data.missing.ratio=0.99", "leaves none in iris"),
    ("search {digits} search.cpus_per_trial=4096", "search.cpus_per_trial: must be at most the"),
    ("search {digits} --tracking-uri sqlite:///{file}", "must answer, got: "),
    ("search {digits} data.source=digit", "data.source: unknown source 'digit': did you mean 'digits'?"),
    ("search {digits} data.source=wine model.head={{choice:[plain,projection]}}", "x and y, got 13 columns; take head"),
    ("validate {config} data.source=wine model.head=projection", "x and y, got 13 columns; take head plain"),
    ("search {digits} name=../x", "name: takes letters, digits, '.', '_' and '-'"),
    ("search {digits} --storage {file}/runs", "cannot be written"),
    ("search {digits} --tracking-uri file:///tmp/x", "the URI of a tracking store must start with one of sqlite:///"),
    ("search {digits} --tracking-uri sqlite:////nowhere/x.db", "/nowhere/x.db cannot be written"),
    ("train {digits}", "one value each is needed, got domains for model.latent"),
    ("train {config} --out {export}", "{export}"),
    ("train {config} --data-dir {file}", "data.data_dir: is an option of fashion_mnist, mnist, not of source 'iris'"),
    ("train {config} data.source=file", "data.path: is required by source 'file'; set data.path"),
    ("train {config} data.source=file data.path=none.csv", "none.csv: cannot be read (No such file or directory)"),
    ("train {config} data.source=mosi data.path=none", "none.h5: there is no such file"),
    ("train {config} data.missing.mechanism=landmark", "landmark hides whole points, but this source has none"),
    ("train {config} data.missing.mechanism=mar data.missing.ratio=0.9", "4 columns bear a ratio up to 0.750"),
    ("train {config} --device cuda:77", "--device: cuda:77 is not available on this machine"),
    ("resume nowhere", "unknown search 'nowhere': there is none yet (in runs)"),
    ("sync nowhere", "unknown search 'nowhere': there is none yet (in runs)"),
    ("sync nowhere --into x --retry-rejected", "to the store it names, got --retry-rejected too; leave"),
    ("sync nowhere --into x --tracking-uri y", "to the store it names, got --tracking-uri too; leave"),
    ("sync {export}", "holds no search to resume (run.json cannot be read"),
    ("resume {export}", "holds no search to resume (run.json cannot be read"),
    ("prune nowhere", "unknown search 'nowhere': there is none yet (in runs)"),
    ("prune nowhere --keep 0", "--keep: takes a number of trials above 0, got 0"),
    ("prune {export} --yes", "holds no search to resume (run.json cannot be read"),
    ("delete {export} --yes", "holds no search to resume (run.json cannot be read"),
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
    ("export {experiment} --tracking-uri {store} --ensemble top:0", "--ensemble: takes greedy, best or top:K with K"),
    ("export {experiment} --tracking-uri {store} --ensemble top:x", "--ensemble: takes greedy, best or top:K with K"),
    ("export {experiment} --tracking-uri {store} --ensemble 3", "--ensemble: takes greedy, best or top:K with K from"),
    ("export {experiment} --tracking-uri {store} --refit tran", "--refit: unknown refit 'tran': did you mean 'train'?"),
    ("export {experiment} --tracking-uri {store} --device tpu9", "--device: tpu9 is not available on this machine"),
    ("export {experiment} --tracking-uri {store} --out {file}/best", "cannot be written"),
    ("export {experiment} --tracking-uri {store} --out {file}", "must be a folder, and is a file"),
    ("retest nowhere", "nowhere: does not exist; write one with `vadtune export EXPERIMENT --out nowhere`"),
    ("retest {export} --ratios 0:1:0.1", "--ratios: takes ratios above 0 and below 1"),
    ("retest {export} --seeds 0", "--seeds: takes a number of masks above 0, got 0"),
    ("retest {export} --seeds 1000000000000", "--seeds: takes at most 10000 masks, got 1000000000000; pass fewer"),
    ("retest {export} --seeds \uff13", "argument --seeds: invalid number value: '\uff13'"),
    ("retest {export} --ratios 0.\uff15", "--ratios: takes ratios above 0 and below 1"),
    ("configs {digits} --out configs --samples 1000000000000", "--samples: takes at most 1000000 configurations, got"),
    ("retest {export} --baselines tree", "--baselines: unknown baseline 'tree'"),
    ("retest {export} --clean --seeds 3", "--clean: hides nothing and takes nothing about masks, got --seeds; leave"),
    ("retest {export} --save-predictions x.txt", "takes a file that ends in .npz or .h5, got x.txt; name it so"),
    ("retest {export} --out {file}/x", "cannot be written"),
    ("retest {incomplete}", "weights.safetensors"),
    ("retest {altered}", "config.yaml"),
    ("plot nowhere", "nowhere: does not exist; write one with"),
    ("plot {export} --ratio 1", "--ratio: takes a share of cells above 0 and below 1, got 1.0"),
    ("plot {export} --ratio nan", "--ratio: takes a share of cells above 0 and below 1, got nan"),
    ("plot {export} --ratio 0.001", "a mask must hide a test cell"),
    ("plot {export} --rows 0", "--rows: takes a number of rows above 0, got 0"),
    ("plot {export} --rows 1 --ratio 0.05", "--rows: needs a missing cell to show, got none in 1 rows"),
    ("plot {export} --seed -1", "--seed: takes a whole number from 0"),
    ("plot {export} --out x.jpg", "--out: takes a file that ends in .png, got x.jpg; change the ending"),
    ("plot {export} --out {file}/x.png", "cannot be written"),
    ("plot {altered}", "config.yaml was altered"),
    ("impute nowhere {table} --out x.csv", "nowhere: does not exist; write one with"),
    ("impute {export} nowhere.csv --out x.csv", "nowhere.csv: cannot be read (No such file or directory)"),
    ("impute {export} {file} --out file2", "takes a file that ends in .csv, .tsv, .parquet, .npy, .npz, got ''"),
    ("impute {export} {wrong} --out x.csv", "must have the columns of the model, got missing 'sepal length (cm)', "),
    ("impute {export} {table} --out x.parquet", "--out: takes a file of the table's kind, '.csv', got x.parquet"),
    ("impute {export} {table} --out {table}", "--out: takes another file than the table that is read"),
    ("impute {export} {table} --out {export}", "--out: takes a file, got the folder"),
    ("impute {export} {table} --out {file}/x.csv", "cannot be written"),
    ("impute {incomplete} {table} --out x.csv", "weights.safetensors is missing"),
    ("compare {digits} --out cmp --ratios 2", "--ratios: takes ratios above 0 and below 1"),
    ("compare {digits} --out cmp --seeds 0", "--seeds: takes a number of masks above 0, got 0"),
    ("compare {digits} --out cmp --ensemble top:0", "--ensemble: takes greedy, best or top:K with K from 1"),
    ("compare {digits}", "the following arguments are required: --out"),
    ("compare search.samples=3 --out cmp", "FILE: needs a search file at least, got search.samples=3; name one"),
    ("compare {digits} {digits} --out cmp", "need different names, got 'digits' twice; change one"),
    ("compare {digits} nofile.yaml --out cmp", "nofile.yaml: cannot be read"),
    ("compare {digits} data.source=digit --out cmp", "data.source: unknown source 'digit'"),
    ("compare {digits} --out {file}/cmp", "cannot be written"),
    ("compare {digits} search.cpus_per_trial=4096 --out cmp", "search.cpus_per_trial: must be at most the"),
    ("compare {digits} --out cmp --tracking-uri sqlite:////nowhere/x.db", "/nowhere/x.db cannot be written"),
    ("configs {digits}", "the following arguments are required: --out"),
    ("configs {digits} --out configs --samples 0", "--samples: takes a number of configurations above 0, got 0"),
    ("configs {digits} model.latnt=3 --out configs", "model.latnt: unknown key 'latnt': did you mean 'latent'?"),
    ("configs {digits} --out {export}", "must be new or empty, and is not; name another folder"),
    ("configs {digits} --out {file}/x", "cannot be written"),
    ("import-config nofile.json", "nofile.json: cannot be read (No such file or directory)"),
    ("import-config {file}", "not valid JSON"),
    ("import-config {published}", "--source: is needed, a configuration of the published code does not name its data"),
    ("import-config {published} --source digit", "data.source: unknown source 'digit': did you mean 'digits'?"),
    ("import-config {published} --source iris --kl", "--kl: belongs to the models vae and vae_free, got ae"),
    ("import-config {published} --source iris --ratio-kl 2", "--ratio-kl: needs --kl, without which the prior"),
    ("import-config {published} --source iris --batch-size 0", "train.batch_size: must be greater than or equal to 1"),
    ("import-config {published} --source iris --out {export}", "--out: takes a file, got the folder"),
    ("import-config {published} --source iris --out {file}/x.yaml", "cannot be written"),
    ("ui", "the store must exist, and does not; run `vadtune search` first"),
    ("ui --tracking-uri {store} --port 99999", "--port: takes a port from 1 to 65535, got 99999"),
    ("ui --tracking-uri {store} --port {busy}", "cannot be used (Address already in use); pass another"),
]


@pytest.fixture(scope="module")
def places(search: FinishedSearch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the commands of the table name."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "file").write_text("a file, not a folder")
    (folder / "dotted.yaml").write_text("name: dotted\ndata: {source: iris}\nmodel.latent: {int: [1, 3]}\n")
    names = "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)"
    (folder / "table.csv").write_text(f"{names}\n5.1,,1.4,\n")
    (folder / "wrong.csv").write_text("a,b\n1,\n")
    published = {"n_latent_params": 25, "n_hidden": 50, "n_hidden_layers": 2, "net_lr": 0.001, "latent_param_lr": 0.01}
    (folder / "config_0.json").write_text(json.dumps({**published, "masked": 0.5}))
    found = find_results("tiny", search.uri)
    options = {"metric": found.metric, "ensemble": "best", "refit": "none"}
    best = export_best(found.search, found.trials, out=folder / "best", **options)
    model = folder / "best" / best.ensemble.members[0].folder
    for name in ("incomplete", "altered"):
        shutil.copytree(model, folder / name)
    (folder / "incomplete" / "weights.safetensors").unlink()
    with (folder / "altered" / "config.yaml").open("a") as config:
        config.write("# one line more\n")
    return {
        "digits": DIGITS,
        "file": str(folder / "file"),
        "dotted": str(folder / "dotted.yaml"),
        "published": str(folder / "config_0.json"),
        "table": str(folder / "table.csv"),
        "wrong": str(folder / "wrong.csv"),
        "config": str(model / "config.yaml"),
        "export": str(model),
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


def test_overrides_may_stand_anywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["configs", DIGITS, "model.latent=3", "--out", str(tmp_path / "out"), "train.epochs=7", "--samples", "2"]
    assert main([*command, "model.layers=0"]) == 0
    written = [yaml.safe_load(path.read_text()) for path in (tmp_path / "out").iterdir()]
    assert [(tree["model"]["latent"], tree["model"]["layers"], tree["train"]["epochs"]) for tree in written] == [
        (3, 0, 7)
    ] * 2
    with pytest.raises(SystemExit):
        main([*command, "epochs"])
    assert "unrecognized arguments: epochs; see vadtune --help" in capsys.readouterr().err


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


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(places: dict[str, str]) -> None:
    results = [sys.executable, "-m", "vadtune", "results", places["experiment"], "--tracking-uri", places["store"]]
    with subprocess.Popen(results, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
