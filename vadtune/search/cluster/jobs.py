"""Submits searches as jobs to a Ray cluster over HTTP, from any machine that reaches its head."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from vadtune.config import SearchFile
from vadtune.core.errors import ConfigError, SearchError

_LONGEST_COMMAND = 100_000  # bytes; Linux passes 128 KiB to the shell
_POLL_SECONDS = 2.0
_STARTING_SECONDS = 60.0  # a head may answer this long before it accepts jobs
_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


class Jobs:
    """Submits, lists, reads and stops the jobs of a cluster.

    Args:
        address: Address of the head's job server, such as ``http://127.0.0.1:8265``.

    Raises:
        SearchError: It does not answer, or ``ray[default]`` is not installed here.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        if not address.startswith(("http://", "https://")):
            raise SearchError(
                f"--address: takes the address of a job server such as http://127.0.0.1:8265, got {address}; on a node "
                "of the cluster, use `vadtune search --address auto`"
            )
        self._client: Any = self._ask(JobSubmissionClient, address)

    def submit(self, search: SearchFile, *, storage: str, tracking_uri: str | None) -> str:
        """Submits a search to the cluster; returns the id of its job."""
        options = ["--address", "auto", "--storage", storage]
        if tracking_uri is not None:
            options += ["--tracking-uri", tracking_uri]
        # Not in a working_dir of Ray's: with two nodes on one machine, the second one deletes that of the first.
        entrypoint = (
            f"file=$(mktemp) && printf %s {shlex.quote(search.to_yaml())} > $file && exec 3< $file && rm $file && "
            f"exec python -m vadtune search /dev/fd/3 {shlex.join(options)}"
        )
        if len(entrypoint) > _LONGEST_COMMAND:
            raise ConfigError(
                f"a submitted search file must have fewer than {_LONGEST_COMMAND} bytes, got {len(entrypoint)}; "
                "shorten it, or run it on a node by: vadtune search --address auto"
            )
        return str(self._ask(self._client.submit_job, entrypoint=entrypoint, metadata={"search": search.name}))

    def status(self, job: str | None = None) -> list[dict[str, object]]:
        """Returns a row for each submitted job, or for one job, newest first."""
        found = [self._ask(self._client.get_job_info, job)] if job else self._ask(self._client.list_jobs)
        found = [info for info in found if info.submission_id]  # Ray also lists drivers, such as the doctor
        return [
            {
                "job": info.submission_id,
                "search": (info.metadata or {}).get("search"),
                "state": str(getattr(info.status, "value", info.status)).lower(),
                "started": time.strftime("%Y-%m-%d %H:%M", time.localtime((info.start_time or 0) / 1000)),
                "message": " ".join(str(info.message or "").split())[:200],
            }
            for info in sorted(found, key=lambda info: info.start_time or 0, reverse=True)
        ]

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """Yields the output of a job; with ``follow``, until the job ends."""
        shown = 0
        while True:
            ended = self._ask(self._client.get_job_status, job) in _ENDED
            text = self._ask(self._client.get_job_logs, job)
            yield text[shown:]
            shown = len(text)
            if ended or not follow:
                return
            time.sleep(_POLL_SECONDS)

    def stop(self, job: str) -> bool:
        """Asks a job to save its state and end; returns whether it was running."""
        return bool(self._ask(self._client.stop_job, job))

    def _ask(self, question: Any, *args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            try:
                return question(*args, **kwargs)
            except Exception as error:  # various types: no answer, no such job, another version, no token
                text = " ".join(str(error).split())[:300]
                if "No available agent" not in text or time.monotonic() > deadline:
                    what = f"the job server {self._address} must do as asked, got: {text}"
                    raise SearchError(f"{what}; {_next_step(text, error)}") from error
            time.sleep(_POLL_SECONDS)


def _next_step(text: str, error: Exception) -> str:
    lower = text.lower()
    if "ray[default]" in lower or isinstance(error, ImportError):
        return "pip install 'vadtune[cluster]' here"
    if "token" in lower or "unauthorized" in lower:
        return "set RAY_AUTH_TOKEN to the token of the cluster"
    if "does not exist" in lower:
        return "`vadtune status` lists the jobs"
    return "start the cluster with ray[default] on its head, or forward its port, and name it by --address"
