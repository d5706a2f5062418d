"""``vadtune import-config FILE``: translate a configuration of the published VAD code."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_FLAGS = ("model", "kl", "ratio_kl", "log_var", "reduce", "batch_size", "n_train_epochs", "n_test_epochs")


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "import-config",
        parents=parents,
        help="translate a config_N.json of the published VAD code",
        description="Translate a config_N.json of the published VAD code (arXiv 1903.00840), with the flags it was run "
        "with, into a trial configuration, which `train` accepts. ratio_kl is converted to kl_weight by the width of "
        "the data. What has no effect or is unknown is told, never dropped in silence.",
        epilog="example: vadtune import-config config_0.json --source digits --ratio 0.5 --model vae --out vad.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a config_N.json, or the args.json of a run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values of the configuration to replace")
    parser.add_argument("--source", help="the data source (default: the file's dataset, if it names one)")
    parser.add_argument("--ratio", type=float, help="share of cells to make missing (default: the file's masked)")
    parser.add_argument("--name", help="of the configuration (default: that of the file)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the YAML to this file instead of the screen")
    theirs = parser.add_argument_group("flags of the published code (default: the file's, else that code's own)")
    theirs.add_argument("--model", choices=("ae", "vae", "vae_free"), help="posterior none, fixed or learned (ae)")
    theirs.add_argument("--kl", action="store_true", default=None, help="keep the prior (default: dropped)")
    theirs.add_argument("--ratio-kl", "--ratio_kl", type=float, help="weight of the KL divergence (1)")
    theirs.add_argument("--log-var", "--log_var", type=float, help="log variance of the model vae (-14)")
    theirs.add_argument("--reduce", action="store_true", default=None, help="halve learning rates on plateaus")
    theirs.add_argument("--batch-size", "--batch_size", type=int, help="(32)")
    theirs.add_argument("--n-train-epochs", "--n_train_epochs", type=int, help="(50)")
    theirs.add_argument("--n-test-epochs", "--n_test_epochs", type=int, help="(50)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Translates; prints or writes the YAML."""
    from vadtune.compat.published_config import import_settings, read_settings
    from vadtune.core.errors import ConfigError
    from vadtune.core.files import check_writable, write_atomically

    if args.out is not None:
        if args.out.is_dir():
            raise ConfigError(f"--out: takes a file, got the folder {args.out}; name a file in it")
        check_writable(args.out.absolute().parent)
    flags = {name: value for name in _FLAGS if (value := getattr(args, name)) is not None}
    settings = {**read_settings(args.file), **flags}
    if "ratio_kl" in flags and not settings.get("kl"):
        raise ConfigError(f"--ratio-kl: needs --kl, without which the prior is dropped, got {args.ratio_kl}; add --kl")
    imported = import_settings(
        settings, name=args.name or args.file.stem, source=args.source, ratio=args.ratio, overrides=args.overrides
    )
    for note in imported.notes:
        logger.info("%s", note)
    if args.out is None:
        print(imported.config.to_yaml(), end="")
    else:
        write_atomically(args.out, imported.config.to_yaml().encode())
        logger.info("wrote %s; train it: vadtune train %s", args.out, args.out)
    return 0
