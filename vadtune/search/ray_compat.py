"""Every use of a private name of Ray or Tune, and every function of theirs that is replaced at run time.

Each adaptation names what it needs of Ray and is checked before it is applied. If Ray has changed, an optional
adaptation is left out: the search runs without it, and one warning says so. A protective one refuses to start. The
names that a saved state of Tune consists of are in resume/pickle_check.py.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from vadtune.core.errors import SearchError
from vadtune.core.processes import stderr_closed
from vadtune.search.adaptation import VERSIONS, Adaptation, call_optional, warn_once
from vadtune.search.listening import is_loopback, listening

if TYPE_CHECKING:
    import optuna
    from ray.tune.schedulers import TrialScheduler

    from vadtune.search.algorithms.logical_order import LogicalOrder

logger = logging.getLogger(__name__)

_NOT_STARTED = ("no_api_server", "no_autoscaler", "no_log_monitor")
_ANSWER_MS = 5_000
_IDLE_MS = 60_000  # Ray would end idle processes after a second, before the first trials need them
_CONTROLLER = "ray.tune.execution.tune_controller:TuneController"


ADAPTATIONS = {
    # Without it a search of short trials never gets beyond one at a time: whenever a trial ends, its process is given
    # to the next one, and the process that was starting for that one is killed. 64 trials of digits: 103 s -> 54 s,
    # together with the next one.
    "keep_starting_actors": Adaptation(
        f"{_CONTROLLER}._maybe_reuse_cached_actor",
        ("trial",),
        "trials start one after another",
        attributes=("_trial_to_actor", "_actor_manager"),
        uses={"ray.air.execution._internal.actor_manager:RayActorManager.is_actor_started": ("tracked_actor",)},
    ),
    # Tune asks the sampler for a trial only when the process of the one before has started, which takes seconds.
    "parallel_actor_starts": Adaptation(
        f"{_CONTROLLER}._maybe_update_trial_queue",
        (),
        "the processes of trials start one after another",
        attributes=("_running_trials",),
        uses={f"{_CONTROLLER}.update_max_pending_trials": ("max_pending_trials",)},
    ),
    # Results that are held back until they are due, see algorithms/logical_order.py.
    "ordered_results": Adaptation(
        f"{_CONTROLLER}._on_training_result",
        ("trial", "result"),
        "a search does not repeat: results count as they arrive",
        attributes=("_pending_trials", "scheduler_alg", "get_trials"),
    ),
    # A snapshot holds all trials, so writing one takes the longer the more there are. Tune would write one each second.
    "rare_snapshots": Adaptation(
        f"{_CONTROLLER}.checkpoint", ("force", "wait"), "large searches spend much of their time on snapshots"
    ),
    # Tune writes its state as several files in place. A driver killed meanwhile leaves truncated files, or files of
    # different moments: trials that the searcher does not know, or a wrong count of samples.
    "atomic_snapshots": Adaptation(
        f"{_CONTROLLER}.save_to_dir",
        (),
        "a killed search could not be resumed",
        attributes=("_storage", "_session_str"),
        protective=True,
    ),
    # Tune gives the processes of trials a runtime environment, for variables that a driver on another machine may have.
    # Ray then starts a further process for each trial, in place of those it has started, once an agent that takes
    # seconds to start has made that environment. On this machine they inherit all variables anyway.
    "inherited_environment": Adaptation(
        "ray.tune.execution.class_cache:_ActorClassCache.get",
        ("trainable_cls",),
        "the first trial starts seconds later",
        attributes=("_cache",),
    ),
    # After Ctrl-C Tune has saved its state, then waits up to fifteen seconds for each process to end its step.
    "quick_interrupts": Adaptation(
        f"{_CONTROLLER}._cleanup_trials",
        (),
        "Ctrl-C takes seconds longer",
        attributes=("_actor_manager",),
        uses={"ray.air.execution._internal.actor_manager:RayActorManager.cleanup": ()},
    ),
    # A Ray of one machine has no use for them: a dashboard, which without its pages only reports usage, an autoscaler,
    # and a reader of logs that go nowhere. Ray's start takes 4.4 s with them, 3.4 s without, beside the imports.
    "no_api_server": Adaptation(
        "ray._private.node:Node.start_api_server",
        ("include_dashboard", "raise_on_failure"),
        "Ray takes longer to start",
    ),
    "no_autoscaler": Adaptation("ray._private.node:Node.start_monitor", (), "Ray takes longer to start"),
    "no_log_monitor": Adaptation("ray._private.node:Node.start_log_monitor", (), "Ray takes longer to start"),
    # Ray looks once a second whether its node is there.
    "quick_node_lookup": Adaptation(
        "ray._private.services:get_node",
        ("node_id",),
        "Ray takes up to a second longer to start",
        uses={
            "ray._private.state:GlobalState.node_table": (),
            "ray._private.state:GlobalState._initialize_global_state": ("gcs_options",),
            "ray._private.services:_get_gcs_client_options": (),
        },
    ),
    # When it ends, Tune looks for a file with the results of each trial, of which there are none: 5 ms a trial.
    "no_result_files": Adaptation(
        "ray.tune.analysis.experiment_analysis:ExperimentAnalysis._fetch_trial_dataframes",
        (),
        "the end of a large search takes seconds longer",
    ),
    # Tune counts every failure alike, and has no extension point between counting one and deciding on it.
    "bounded_retries": Adaptation(
        f"{_CONTROLLER}._process_trial_failure",
        ("trial", "exception"),
        "a trial that fails for good would be tried again and again",
        attributes=("_resetting_trials",),
        protective=True,
    ),
}


def check_effect(name: str) -> None:
    """Checks that Ray has called the replacement of a protective adaptation.

    Raises:
        SearchError: It has not, so this Ray does without the function that was replaced.
    """
    if not ADAPTATIONS[name].was_called():
        raise SearchError(
            f"Ray {ray.__version__} must call {ADAPTATIONS[name].target} and did not; without it "
            f"{ADAPTATIONS[name].reason}; install 'ray{VERSIONS}'"
        )


def check_protective() -> None:
    """Checks the adaptations that a search must not run without; call it before anything is written.

    Raises:
        SearchError: Ray has changed so that one cannot be applied.
    """
    for adaptation in ADAPTATIONS.values():
        if adaptation.protective:
            adaptation.is_usable()


@contextlib.contextmanager
def adapted_tune(
    *,
    slots: int,
    order: LogicalOrder | None,
    on_begin: Callable[[TrialScheduler], None],
    is_local: bool,
    is_interrupted: Callable[[], bool],
    is_transient: Callable[[BaseException], bool],
    snapshot_share: float,
) -> Iterator[None]:
    """Applies the adaptations of Tune until the block ends, except that of ``saved_states``.

    Args:
        slots: Number of trials that can run at once.
        order: The order in which results count; None to take them as they arrive.
        on_begin: Called with the scheduler before the first trial is proposed.
        is_local: Whether this process has started the Ray that trials run in.
        is_interrupted: Whether the search ends early and is resumed later from what Tune has saved.
        is_transient: Whether a retry may succeed after a failure; a trial with another failure is not retried.
        snapshot_share: Largest share of the time to spend on saving Tune's state.

    Raises:
        SearchError: Ray has changed so that a protective one cannot be applied.
    """
    if not all(ADAPTATIONS[name].is_usable() for name in ("ordered_results", "parallel_actor_starts")):
        order = None
    last_failure: dict[str, BaseException] = {}
    due, begun = 0.0, False

    def keep_starting_actors(original: Any, controller: Any, trial: Any) -> bool:
        actor = controller._trial_to_actor.get(trial)
        if actor is not None and controller._actor_manager.is_actor_started(actor):
            return False
        return bool(original(controller, trial))

    def ordered_results(original: Any, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if order is None:
            original(controller, trial, result)
        else:
            order.arrived(trial, int(result["epoch"]), lambda: original(controller, trial, result))

    def parallel_actor_starts(original: Any, controller: Any) -> None:
        nonlocal begun
        if not begun:
            begun = True
            on_begin(controller.scheduler_alg)
        if order is not None:

            def propose(count: int) -> None:
                controller.update_max_pending_trials(len(controller._pending_trials) + count)
                original(controller)

            order.proceed(controller.get_trials(), propose)
            controller.update_max_pending_trials(max(1, len(controller._pending_trials)))
            return
        # Once all have started, Tune again chooses each next trial when it is needed, from all results so far.
        controller.update_max_pending_trials(max(1, slots - len(controller._running_trials)))
        original(controller)

    def bounded_retries(original: Any, controller: Any, trial: Any, exception: BaseException) -> None:
        # The death of a worker between two of its trials is reported twice, and the trial then counts as being reset
        # for ever.
        if last_failure.get(trial.trial_id) is exception:
            return
        last_failure[trial.trial_id] = exception
        controller._resetting_trials.discard(trial)
        if not is_transient(exception):
            trial.max_failures = 0
        if order is None or trial.num_failures < trial.max_failures:
            original(controller, trial, exception)
        else:
            order.arrived(trial, None, lambda: original(controller, trial, exception))

    def rare_snapshots(original: Any, controller: Any, force: bool = False, wait: bool = False) -> None:
        nonlocal due
        start = time.monotonic()
        if force or start >= due:
            original(controller, force=force, wait=wait)
            end = time.monotonic()
            due = end + (end - start) * (1 / snapshot_share - 1)

    def quick_interrupts(original: Any, controller: Any) -> None:
        if is_interrupted():
            controller._actor_manager.cleanup()  # kills all actors
        else:
            original(controller)

    def no_result_files(original: Any, analysis: Any) -> dict[str, Any]:
        return {}

    def inherited_environment(original: Any, cache: Any, trainable_cls: Any) -> Any:
        return cache._cache.setdefault(trainable_cls, ray.remote(trainable_cls))

    wrappers: list[Any] = [keep_starting_actors, ordered_results, parallel_actor_starts, bounded_retries]
    wrappers += [rare_snapshots, quick_interrupts, no_result_files] + [inherited_environment] * is_local
    with contextlib.ExitStack() as stack:
        for wrapper in wrappers:
            stack.enter_context(ADAPTATIONS[wrapper.__name__].applied(wrapper))
        yield


def saved_states(save: Callable[[Callable[[], dict[str, Path]]], None]) -> AbstractContextManager[None]:
    """Calls ``save`` in place of Tune's method that saves its state.

    Args:
        save: Takes a function that saves the state and returns its files, by their names without the session's time.
    """

    def replacement(original: Any, controller: Any) -> None:
        def write() -> dict[str, Path]:
            original(controller)
            session = f"-{controller._session_str}"
            folder = Path(controller._storage.experiment_driver_staging_path)
            return {path.name.replace(session, ""): path for path in sorted(folder.glob(f"*{session}.*"))}

        save(write)

    return ADAPTATIONS["atomic_snapshots"].applied(replacement)


def start_on_loopback(folder: Path, *, preloaded: str = "", **options: Any) -> None:
    """Starts a Ray of this machine alone, and checks that its processes listen on loopback addresses only.

    Args:
        folder: For its files; an absolute path.
        preloaded: Module that its worker processes import when they start.
        options: Further arguments of ``ray.init``.

    Raises:
        SearchError: One of its processes listens on another address. Ray is shut down again.
    """
    set_cluster_networking(False)
    before = listening()
    try:
        system: dict[str, Any] = {"idle_worker_killing_time_threshold_ms": _IDLE_MS}
        if preloaded:
            system["preload_python_modules"] = [preloaded]
        with contextlib.ExitStack() as stack:
            for name in _NOT_STARTED:
                stack.enter_context(ADAPTATIONS[name].applied(lambda original, node, **unused: None))
            stack.enter_context(ADAPTATIONS["quick_node_lookup"].applied(_get_node))
            private = {"_node_ip_address": "127.0.0.1", "_temp_dir": str(folder), "_system_config": system}
            ray.init(address="local", **private, **options)
    except (RuntimeError, TypeError) as error:
        if "_node_ip_address" in str(error):
            rule = f"Ray {ray.__version__} cannot listen on 127.0.0.1 only"
            raise SearchError(f"{rule}; install 'ray{VERSIONS}'") from error
        raise
    exposed = sorted({address for _, address in listening() - before if not is_loopback(address)})
    if exposed:
        ray.shutdown()
        rule = f"Ray {ray.__version__} must listen on loopback addresses only, got {', '.join(exposed)}"
        raise SearchError(f"{rule}; install 'ray{VERSIONS}'")


def _get_node(original: Any, gcs_address: str, node_id: str) -> Any:
    """Waits for a node that is starting, by looking often, and returns what Ray's own function does."""
    services, state = (importlib.import_module(f"ray._private.{name}") for name in ("services", "state"))
    nodes, end = state.GlobalState(), time.monotonic() + 10
    nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
    while all(node["NodeID"] != node_id for node in nodes.node_table()) and time.monotonic() < end:
        time.sleep(0.05)
    return original(gcs_address, node_id)


def set_cluster_networking(enabled: bool) -> None:
    """Sets whether Ray looks up an address that other machines can reach, rather than using 127.0.0.1.

    ``start_on_loopback`` checks the effect.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = enabled  # type: ignore[attr-defined]


def address_of_this_node() -> str | None:
    """Returns ``host:port`` of the cluster that ``ray start`` joined on this machine; None without one.

    ``ray.init(address="auto")`` would take any Ray on this machine, such as the one of another search.
    """
    address = call_optional(
        "ray._private.utils:read_ray_address", "--address auto finds no cluster, name its host:port"
    )
    return str(address) if address else None


def ask_cluster(address: str) -> None:
    """Asks the head of a cluster for its id; raises what Ray raises where it answers that the token is wrong.

    ``ray.init`` would ask again for twenty seconds.
    """
    with stderr_closed():  # Ray writes a warning there
        call_optional(
            "ray._raylet:InnerGcsClient.standalone", "a wrong token is noticed late", address, None, _ANSWER_MS
        )


def accelerator_type() -> str | None:
    """Returns Ray's name for the type of this machine's GPUs, such as ``A100``; None without any."""
    path = "ray._private.accelerators:get_accelerator_manager_for_resource"
    manager = call_optional(path, "search.accelerator_type needs a running cluster", "GPU")
    kind = manager and manager.get_current_node_accelerator_type()
    return str(kind) if kind else None


def actor_of(trial: Any) -> Any:
    """Returns the Ray actor that a Tune trial runs in; None if it has none."""
    try:
        return trial.temporary_state.ray_actor
    except AttributeError:
        warn_once(f"Ray {ray.__version__}: Trial has no temporary_state.ray_actor; trials that hang are not ended")
        return None


def asha_rungs(scheduler: TrialScheduler) -> list[dict[str, float]]:
    """Returns what an ASHAScheduler has recorded, by trial id for each rung, highest first; empty for other schedulers.

    Changing the result changes what the scheduler knows: Tune saves nothing of it for a resume.
    """
    try:
        return [recorded for bracket in getattr(scheduler, "_brackets", ()) for _, recorded in bracket._rungs]
    except (AttributeError, TypeError, ValueError):
        warn_once(f"Ray {ray.__version__}: ASHA has no rungs; after a resume it begins without scores")
        return []


def optuna_state(searcher: Any) -> tuple[optuna.Study, dict[str, optuna.trial.Trial], set[str]] | None:
    """Returns the study of an OptunaSearch, its trials by Tune's ids, and the ids of those whose end the study knows.

    Returns None, with one warning, if this version of Ray keeps them in another form.
    """
    try:
        return searcher._ot_study, searcher._ot_trials, searcher._completed_trials
    except AttributeError as error:
        warn_once(f"Ray {ray.__version__}: {error}; without it Optuna counts stopped trials as complete")
        return None
