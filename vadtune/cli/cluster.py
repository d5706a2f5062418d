"""Commands about a Ray cluster: check it, and submit, list, read and stop searches as jobs on it."""

from __future__ import annotations

import argparse

from vadtune.cli import arguments as shared
from vadtune.cli.arguments import argument, command
from vadtune.cli.output import emit, logger, say
from vadtune.core.errors import ConfigError


@command(shared.STORAGE, shared.tracking_store(), shared.CLUSTER)
def doctor(args: argparse.Namespace) -> int:
    """Check machine or cluster, storage and MLflow before a search.

    Prints one line per check: ok, or what to do. The exit code is 1 if a check fails.

    example: vadtune doctor
    example: vadtune doctor --address auto --storage /shared/runs
    """
    from vadtune.search.cluster.doctor import examine
    from vadtune.tracking.store import tracking_uri

    all_ok = True
    for check in examine(address=args.address, storage=args.storage, tracking_uri=tracking_uri(args.tracking_uri)):
        say(f"{'ok' if check.ok else 'PROBLEM':<8} {check.name}: {check.text}")
        all_ok = all_ok and check.ok
    return 0 if all_ok else 1


@command(
    shared.search_file(),
    shared.JOB_SERVER,
    argument("--storage", required=True, help="folder that all nodes share, or a URI (required)"),
    shared.tracking_store("MLFLOW_TRACKING_URI of the head node"),
)
def submit(args: argparse.Namespace) -> None:
    """Run a search on a cluster as a Ray job.

    Sends the search file to a Ray cluster, whose head node runs the search. Prints the job id.

    example: vadtune submit digits --storage /shared/runs
    example: vadtune submit my_search.yaml search.samples=200 --storage s3://bucket/runs --address http://127.0.0.1:8265
    """
    search = shared.read_search(args)
    from vadtune.tracking.redact import without_secrets

    if args.tracking_uri and without_secrets(args.tracking_uri) != args.tracking_uri:
        raise ConfigError(
            f"--tracking-uri: must hold no secret, as a job's command is shown to all users of the cluster, got "
            f"{without_secrets(args.tracking_uri)}; set MLFLOW_TRACKING_URI on the nodes instead"
        )
    from vadtune.search.cluster.jobs import Jobs

    job = Jobs(args.address).submit(search, storage=args.storage, tracking_uri=args.tracking_uri)
    say(job)
    logger.info("next: vadtune logs %s --follow --address %s", job, args.address)


@command(
    argument("job", nargs="?", metavar="JOB", help="only this job (default: all jobs)"),
    shared.FORMAT,
    shared.JOB_SERVER,
)
def status(args: argparse.Namespace) -> None:
    """List the searches submitted to a cluster.

    One row per job of the Ray cluster, newest first, with its state.

    example: vadtune status --address http://127.0.0.1:8265
    """
    from vadtune.search.cluster.jobs import Jobs

    emit(Jobs(args.address).status(args.job), args.format)


@command(
    shared.JOB,
    argument("--follow", action="store_true", help="continue until the search ends (default: off)"),
    shared.JOB_SERVER,
)
def logs(args: argparse.Namespace) -> None:
    """Show the output of a submitted search.

    example: vadtune logs raysubmit_abc --follow --address http://127.0.0.1:8265
    """
    from vadtune.search.cluster.jobs import Jobs

    for text in Jobs(args.address).logs(args.job, follow=args.follow):
        say(text, end="")


@command(shared.JOB, shared.JOB_SERVER)
def stop(args: argparse.Namespace) -> None:
    """Stop a submitted search; it can be resumed.

    Asks the search to save its state and end. `vadtune resume` on a node of the cluster continues it.

    example: vadtune stop raysubmit_abc --address http://127.0.0.1:8265
    """
    from vadtune.search.cluster.jobs import Jobs

    was_running = Jobs(args.address).stop(args.job)
    logger.info("%s %s", args.job, "was asked to stop" if was_running else "had ended already")
