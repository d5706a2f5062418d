"""Commands about search files: list, write, check and translate them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from vadtune.cli.arguments import argument, check_count, check_out_file, check_ratio, command, read_search, search_file
from vadtune.cli.output import logger, say
from vadtune.core.errors import ConfigError, DataError, unknown_name
from vadtune.core.files import new_folder, write_atomically
from vadtune.core.shipped import description_of, shipped_search_files


@command(argument("name", nargs="?", metavar="NAME", help="print the YAML of this file (default: list all)"))
def spaces(args: argparse.Namespace) -> None:
    """List the search files that come with vadtune, or print one.

    Without NAME, prints the name of each file and what it searches. With NAME, prints the YAML of that file, to copy
    and edit. Commands that take a search file also take these names.

    example: vadtune spaces
    example: vadtune spaces digits > digits.yaml
    """
    files = shipped_search_files()
    if args.name is None:
        width = max(map(len, files), default=0)
        for name, path in files.items():
            say(f"{name:<{width}}  {description_of(path)}")
    elif args.name in files:
        say(files[args.name].read_text(), end="")
    else:
        raise ConfigError(f"NAME: {unknown_name('search file', args.name, files)}")


@command(
    argument("source", metavar="SOURCE_OR_TABLE", help="a source such as digits, or the path of a table"),
    argument("overrides", nargs="*", metavar="data.key=value", help="values of the data section"),
    argument("--out", type=Path, required=True, metavar="FILE", help="new .yaml file (required)"),
    argument("--ratio", type=float, help="fraction of cells to hide (default: 0.5; 0 if some are missing)"),
)
def init(args: argparse.Namespace) -> None:
    """Write a search file for your table or a built-in source.

    Looks at the data and writes a search space that suits its size. Takes the name of a source, or a table (CSV, TSV,
    Parquet, npz, npy). Further values of the data section are passed as data.key=value.

    example: vadtune init table.csv --out table.yaml
    example: vadtune init table.csv data.na_values=[-99] data.columns=[age,height] --out table.yaml
    """
    import numpy as np

    from vadtune.config import TrialConfig, parse_search, parse_trial
    from vadtune.config.default_space import default_space, to_text
    from vadtune.data import SOURCES

    _check_init(args, SOURCES)
    from vadtune.data import load_dataset

    is_table = args.source not in SOURCES or args.source == "file"
    data: dict[str, Any] = {"source": "file", "path": args.source} if is_table else {"source": args.source}
    stem = Path(args.source).stem if is_table else args.source
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip("._-") or "table"

    def configured(missing: object) -> TrialConfig:
        return parse_trial({"name": name, "data": {**data, "missing": missing}}, args.overrides)

    raw = None
    if args.ratio is not None:
        config = configured({"ratio": args.ratio})
    else:
        raw = configured({}).data.load() if is_table else None
        config = configured("none" if raw is not None and np.isnan(raw.x).any() else {"ratio": 0.5})
    dataset = load_dataset(config.data, raw)
    train = dataset.train
    rows, columns = train.x.shape
    missing = 1 - float(train.mask.mean())
    observed = train.x[:, train.mask.any(axis=0)]
    space = default_space(rows, columns, float(np.nanvar(observed, axis=0).mean()), missing)
    section = config.data.model_dump(exclude_unset=True)
    if config.data.missing.ratio == 0:
        section["missing"] = "none"
    header = (
        f"{rows} train rows of {columns} columns, {missing:.0%} of their cells missing.\n    vadtune search {args.out}"
    )
    text = to_text(header, name, section, space)
    parse_search({"name": name, "data": section, **space})  # never write an invalid file
    write_atomically(args.out, text.encode())
    logger.info("next: vadtune search %s", args.out)
    say(args.out)


def _check_init(args: argparse.Namespace, sources: Any) -> None:
    if args.out.exists():
        raise ConfigError(f"--out: takes a new file, got {args.out}, which exists; name another")
    check_out_file(args.out, ".yaml", ".yml")
    if args.ratio is not None:
        check_ratio(args.ratio)
    if args.source not in sources and not Path(args.source).suffix:
        raise ConfigError(f"SOURCE_OR_TABLE: {unknown_name('source', args.source, sources)}; or pass a table's path")
    for override in args.overrides:
        if not override.startswith("data."):
            raise ConfigError(f"takes values of the data section, such as data.columns=[a, b], got '{override}'")


@command(search_file("search file, a name of `vadtune spaces`, or a trial configuration"))
def validate(args: argparse.Namespace) -> None:
    """Report every problem of a search file.

    Also takes a trial configuration. If the data can be read, its columns are checked too.

    example: vadtune validate digits
    example: vadtune validate my_search.yaml train.epochs=100
    """
    search = read_search(args)
    if search.choices("model.head") != ["plain"]:
        from vadtune.data import load_dataset
        from vadtune.search.driver.model_checks import check_heads

        try:
            check_heads(search, len(load_dataset(search.data).feature_names))
        except DataError as error:  # the data may be on another machine
            logger.warning("could not check whether model.head fits the columns: %s", error)
    say(f"{args.file}: ok, {len(search.domains)} searched parameters")


@command(
    search_file(),
    argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder (required)"),
    argument("--samples", type=int, metavar="N", help="how many (default: search.samples, or the grid)"),
)
def configs(args: argparse.Namespace) -> None:
    """Write configurations of a search file without running the search.

    Writes config_0.yaml, config_1.yaml, ...: every point of the grid if the sampler is `grid`, otherwise a random
    sample. Each file is a trial configuration, which `vadtune train` accepts. Prints the paths.

    example: vadtune configs digits_grid --out configs
    example: vadtune configs digits search.seed=1 --samples 10 --out configs
    """
    if args.samples is not None:
        check_count("--samples", args.samples, "configurations")
    search = read_search(args)
    from vadtune.search.algorithms.space import draw_configurations

    points = draw_configurations(search, args.samples)
    texts = {f"config_{number}.yaml": search.trial_config(point).to_yaml() for number, point in enumerate(points)}
    with new_folder(args.out) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text)
    for name in texts:
        say(args.out / name)
    if args.samples is not None and len(texts) < args.samples:
        logger.warning("%s has only %d configurations, fewer than --samples %d", args.file, len(texts), args.samples)
    logger.info("next: vadtune train %s --out model", args.out / "config_0.yaml")


_PUBLISHED_FLAGS = ("model", "kl", "ratio_kl", "log_var", "reduce", "batch_size", "n_train_epochs", "n_test_epochs")


def _published_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("flags of the published code (default: those in FILE, else that code's defaults)")
    flags.add_argument("--model", choices=("ae", "vae", "vae_free"), help="kind of posterior (default: ae)")
    flags.add_argument("--kl", action="store_true", default=None, help="keep the prior (default: off)")
    flags.add_argument("--ratio-kl", "--ratio_kl", type=float, help="weight of the KL divergence (default: 1)")
    flags.add_argument("--log-var", "--log_var", type=float, help="log variance of the model vae (default: -14)")
    flags.add_argument("--reduce", action="store_true", default=None, help="halve rates on plateaus (default: off)")
    flags.add_argument("--batch-size", "--batch_size", type=int, help="rows per batch (default: 32)")
    flags.add_argument("--n-train-epochs", "--n_train_epochs", type=int, help="epochs of training (default: 50)")
    flags.add_argument("--n-test-epochs", "--n_test_epochs", type=int, help="epochs of inference (default: 50)")


@command(
    argument("file", type=Path, metavar="FILE", help="a config_N.json, or the args.json of a run"),
    argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the translated"),
    argument("--source", help="data source (default: the dataset that FILE names)"),
    argument("--ratio", type=float, help="fraction of cells to hide (default: masked of FILE)"),
    argument("--name", help="name of the configuration (default: that of FILE)"),
    argument("--out", type=Path, metavar="FILE", help="write the YAML to this file (default: print)"),
    _published_flags,
)
def import_config(args: argparse.Namespace) -> None:
    """Translate a config_N.json of the published VAD code.

    Translates a configuration of the published VAD code (arXiv 1903.00840), with the flags it was run with, into a
    trial configuration, which `vadtune train` accepts. ratio_kl becomes kl_weight, which depends on the number of
    columns. Keys that are unknown or have no effect are logged.

    example: vadtune import-config config_0.json --source digits --ratio 0.5 --model vae --out vad.yaml
    """
    from vadtune.compat.published_config import import_settings, read_settings

    if args.out is not None:
        check_out_file(args.out)
    flags = {name: value for name in _PUBLISHED_FLAGS if (value := getattr(args, name)) is not None}
    settings = {**read_settings(args.file), **flags}
    if "ratio_kl" in flags and not settings.get("kl"):
        raise ConfigError(f"--ratio-kl: needs --kl, without which the prior is dropped, got {args.ratio_kl}; add --kl")
    imported = import_settings(
        settings, name=args.name or args.file.stem, source=args.source, ratio=args.ratio, overrides=args.overrides
    )
    for note in imported.notes:
        logger.info("%s", note)
    if args.out is None:
        say(imported.config.to_yaml(), end="")
    else:
        write_atomically(args.out, imported.config.to_yaml().encode())
        logger.info("wrote %s; train it: vadtune train %s", args.out, args.out)
