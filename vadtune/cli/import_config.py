"""Translate a config_N.json of the published VAD code.

Translates a configuration of the published VAD code (arXiv 1903.00840), with the flags it was run with, into a trial
configuration, which `vadtune train` accepts. ratio_kl becomes kl_weight, which depends on the number of columns. Keys
that are unknown or have no effect are logged.

example: vadtune import-config config_0.json --source digits --ratio 0.5 --model vae --out vad.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vadtune.cli.arguments import check_out_file
from vadtune.cli.output import logger
from vadtune.core.errors import ConfigError

_FLAGS = ("model", "kl", "ratio_kl", "log_var", "reduce", "batch_size", "n_train_epochs", "n_test_epochs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a config_N.json, or the args.json of a run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace the translated")
    parser.add_argument("--source", help="data source (default: the dataset that FILE names)")
    parser.add_argument("--ratio", type=float, help="fraction of cells to hide (default: masked of FILE)")
    parser.add_argument("--name", help="name of the configuration (default: that of FILE)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the YAML to this file (default: print)")
    flags = parser.add_argument_group("flags of the published code (default: those in FILE, else that code's defaults)")
    flags.add_argument("--model", choices=("ae", "vae", "vae_free"), help="kind of posterior (default: ae)")
    flags.add_argument("--kl", action="store_true", default=None, help="keep the prior (default: off)")
    flags.add_argument("--ratio-kl", "--ratio_kl", type=float, help="weight of the KL divergence (default: 1)")
    flags.add_argument("--log-var", "--log_var", type=float, help="log variance of the model vae (default: -14)")
    flags.add_argument("--reduce", action="store_true", default=None, help="halve rates on plateaus (default: off)")
    flags.add_argument("--batch-size", "--batch_size", type=int, help="rows per batch (default: 32)")
    flags.add_argument("--n-train-epochs", "--n_train_epochs", type=int, help="epochs of training (default: 50)")
    flags.add_argument("--n-test-epochs", "--n_test_epochs", type=int, help="epochs of inference (default: 50)")


def run(args: argparse.Namespace) -> int:
    """Translates; prints or writes the YAML."""
    from vadtune.compat.published_config import import_settings, read_settings
    from vadtune.core.files import write_atomically

    if args.out is not None:
        check_out_file(args.out)
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
