"""The space for data nobody has tuned for, and the command that writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vadtune.cli import main
from vadtune.config import SearchFile, load_search, parse_search
from vadtune.config.default_space import COMMENTS, default_space, to_text
from vadtune.data import load_dataset
from vadtune.search.algorithms.space import draw_configurations

SEARCH_SPACES = Path(__file__).parent.parent.parent / "search_spaces"
DATA = {"source": "iris", "missing": {"ratio": 0.5}}


def searched(rows: int, columns: int, variance: float, ratio: float) -> SearchFile:
    return parse_search({"name": "any", "data": DATA, **default_space(rows, columns, variance, ratio)})


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 10**6),
    columns=st.integers(1, 5000),
    variance=st.sampled_from([0.0, 1e-6, 0.07, 1.0, 40.0]),
    ratio=st.floats(0, 0.99),
)
def test_data_of_any_size_has_a_valid_space(rows: int, columns: int, variance: float, ratio: float) -> None:
    """It is checked whole, initial points included, and every trial of it is a configuration."""
    search = searched(rows, columns, variance, ratio)
    for point in draw_configurations(search, 8):
        config = search.trial_config(point)
        assert config.model.latent <= min(columns, 128)
        assert config.model.skip is False or config.model.layers > 0
    steps = search.epochs * -(-rows // search.trial_config({}).train.batch_size)
    assert steps >= 1500 or search.epochs == 800
    assert parse_search(yaml.safe_load(to_text("a\nb", "any", DATA, default_space(rows, columns, variance, ratio))))


@pytest.mark.parametrize(("rows", "columns"), [(100, 4), (400, 30), (1257, 64), (3000, 144), (20_000, 20)])
def test_linear_decoders_are_tried_first(rows: int, columns: int) -> None:
    search = searched(rows, columns, 1.0, 0.5)
    first = draw_configurations(search, len(search.search.initial))
    linear = [point for point in first if point["model.layers"] == 0]
    assert len(linear) >= 3
    assert {point["model.noise"] for point in linear} == {"fixed", "learned"}
    for point in linear:  # nothing that does not exist was drawn for them
        assert not {"train.net_lr", "train.latent_lr", "infer.lr", "model.hidden", "model.skip"} & set(point)


def test_large_tables_have_no_decoder_that_is_slow_to_solve() -> None:
    space = default_space(50_000, 784, 1.0, 0.5)
    assert space["model"]["layers"] == {"int": [1, 2]}
    assert all(point["model.layers"] > 0 for point in space["search"]["initial"])


def test_noise_goes_by_the_data() -> None:
    one, other = (default_space(500, 20, variance, 0.5)["train"]["kl_weight"] for variance in (1.0, 0.01))
    np.testing.assert_allclose(np.divide(one["loguniform"], 100), other["loguniform"])


def test_comments_belong_to_keys_there_are() -> None:
    space = default_space(300, 20, 1.0, 0.5)
    assert {key.partition(".")[0] for key in COMMENTS} <= set(space)
    assert all(key.partition(".")[2] in space[key.partition(".")[0]] for key in COMMENTS)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "synthetic"])
def test_shipped_searches_are_of_this_space(name: str) -> None:
    tree = yaml.safe_load((SEARCH_SPACES / f"{name}.yaml").read_text())
    train = load_dataset(load_search(SEARCH_SPACES / f"{name}.yaml").data).train
    variance = float(np.nanvar(train.x, axis=0).mean())
    expected = default_space(*train.x.shape, variance, 1 - float(train.mask.mean()))
    for section in ("model", "train", "infer"):
        assert tree[section] == expected[section]
    for key in ("initial", "grace_epochs"):
        assert tree["search"].get(key) == expected["search"].get(key)


def test_a_source_gets_a_file_that_validates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "iris.yaml"
    assert main(["init", "iris", "--out", str(out), "--ratio", "0.3"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert main(["validate", str(out)]) == 0
    search = load_search(out)
    assert (search.name, search.data.source, search.data.missing.ratio) == ("iris", "iris", 0.3)
    assert f"vadtune search {out}" in out.read_text()


@pytest.mark.parametrize(
    ("holes", "options", "ratio"), [(True, [], 0), (True, ["--ratio", "0.2"], 0.2), (False, [], 0.5)]
)
def test_a_table_with_holes_of_its_own_has_nothing_more_hidden_unless_asked(
    holes: bool, options: list[str], ratio: float, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((80, 3))
    lines = [f"{a},{'' if holes and i % 4 == 0 else b},{c}" for i, (a, b, c) in enumerate(x)]
    (tmp_path / "my table.csv").write_text("age,height,weight\n" + "\n".join(lines) + "\n")
    out = tmp_path / "mine.yaml"
    assert (
        main(["init", str(tmp_path / "my table.csv"), "data.columns=[age, height]", "--out", str(out), *options]) == 0
    )
    search = load_search(out)
    assert search.name == "my_table"
    assert search.data.path == str(tmp_path / "my table.csv")
    assert search.data.columns == ["age", "height"]
    assert search.data.missing.ratio == ratio


def test_a_column_of_which_nothing_is_left_to_train_on_says_nothing_of_the_variance(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((80, 3))
    known = np.random.RandomState(0).permutation(80)[0]  # the one train row that has a value of it
    lines = [f"{a},{b},{c if i == known else ''}" for i, (a, b, c) in enumerate(x)]
    (tmp_path / "table.csv").write_text("a,b,rare\n" + "\n".join(lines) + "\n")
    hidden = []
    for seed in range(4):
        out = tmp_path / f"{seed}.yaml"
        options = ["--ratio", "0.5", "--out", str(out)]
        assert main(["init", str(tmp_path / "table.csv"), f"data.missing.seed={seed}", *options]) == 0
        search = load_search(out)
        hidden.append(not load_dataset(search.data).train.mask[:, 2].any())
        assert search.domains["train.kl_weight"].contains(0.1)
    assert any(hidden)
