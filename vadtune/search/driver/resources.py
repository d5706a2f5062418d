"""Cores, GPUs and accelerator types: what a trial asks for, and whether a node has it."""

from __future__ import annotations

import logging

import ray

from vadtune.config import SearchConfig
from vadtune.core.errors import ConfigError, unknown_name
from vadtune.core.processes import available_cores
from vadtune.search.cluster.join import Node, can_grow, nodes
from vadtune.search.ray_compat import accelerator_type

logger = logging.getLogger(__name__)

_TYPE = "accelerator_type:"


def check_resources(config: SearchConfig) -> None:
    """Checks that some node has the resources of a trial; Ray would wait for them for ever.

    Raises:
        ConfigError: A trial asks for more than any node has, and the cluster does not grow.
    """
    alive = nodes() if ray.is_initialized() else [_this_machine(config)]
    asked = resources_of(config)
    problems = [
        f"search.{key}: must be at most the {most:g} {kind}s there are, got {asked[kind]:g}; lower it"
        for key, kind in (("cpus_per_trial", "CPU"), ("gpus_per_trial", "GPU"))
        if asked[kind] > (most := max((node.resources.get(kind, 0) for node in alive), default=0))
    ]
    if config.accelerator_type:
        types = {name.removeprefix(_TYPE) for node in alive for name in node.resources if name.startswith(_TYPE)}
        if config.accelerator_type not in types:
            problems.append(f"search.accelerator_type: {unknown_name('type', config.accelerator_type, types)}")
    if problems and can_grow():
        logger.warning("no node has what a trial asks for, waiting for the cluster to grow: %s", "; ".join(problems))
    elif problems:
        raise ConfigError(problems)


def resources_of(config: SearchConfig) -> dict[str, float]:
    """Returns the resources that Ray reserves for a trial, by name."""
    resources = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    # Ray gives each node one unit of a resource named after its accelerator; a small part of it selects the node.
    return resources | ({f"{_TYPE}{config.accelerator_type}": 0.001} if config.accelerator_type else {})


def _this_machine(config: SearchConfig) -> Node:
    gpus = 0
    if config.gpus_per_trial:
        import torch  # takes seconds, which a search without GPUs does not need to wait here

        gpus = torch.cuda.device_count()
    kind = accelerator_type() if config.accelerator_type else None
    resources = {"CPU": float(available_cores()), "GPU": float(gpus)}
    return Node("", "127.0.0.1", resources | ({f"{_TYPE}{kind}": 1.0} if kind else {}))
