"""Processes that need the same kernels at once: each kernel is compiled by one of them, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
TRAIN = """
from tests.conftest import trial_config
from vadtune.core.threads import use_threads
from vadtune.data import load_dataset
from vadtune.native import decoder_kernels, linear_kernels
from vadtune.training.population import Population
from vadtune.training.scoring import evaluate

use_threads(1)
for model in ({"layers": 0}, {"layers": 1, "skip": True}):
    config = trial_config(model=model, train={"epochs": 1}, infer={"steps": 2})
    dataset = load_dataset(config.data)
    population = Population([config], dataset.train)
    population.train_until(1)
    evaluate(population, dataset.search_data, start=[None])
kernels = [decoder_kernels.train_epoch, decoder_kernels.fit_rows, linear_kernels.posteriors]
examples = [decoder_kernels._epoch_example, decoder_kernels._fit_example, linear_kernels._example]
for kernel, example in zip(kernels, examples):
    before = len(kernel.signatures)
    kernel.compile(tuple(map(kernel.typeof_pyval, example())))
    print(before, len(kernel.signatures), sum(kernel.stats.cache_misses.values()))
"""
COMPILE = """
from vadtune.native import compiling, linear_kernels

compiling._LONGEST_WAIT = 1.0
kernel = linear_kernels.posteriors
kernel.compile(tuple(map(kernel.typeof_pyval, linear_kernels._example())))
print(0, len(kernel.signatures), sum(kernel.stats.cache_misses.values()))
"""
HANG = """
import time
from vadtune.native import compiling, linear_kernels

with compiling._locked("vadtune.native.linear_kernels") as is_mine:
    print(is_mine, flush=True)
    time.sleep(600)
"""


def start(code: str, cache: Path) -> subprocess.Popen[str]:
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True)


def counts(process: subprocess.Popen[str]) -> list[list[int]]:
    """Returns of each kernel the signatures called, those and the example's, and how many were compiled here."""
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return [[int(word) for word in line.split()] for line in output.splitlines()]


def test_each_kernel_is_compiled_by_one_process(tmp_path: Path) -> None:
    with start(TRAIN, tmp_path) as one, start(TRAIN, tmp_path) as other:
        both = counts(one), counts(other)
    for first, second in zip(*both, strict=True):
        assert first[:2] == second[:2] == [1, 1], "an example has other types than the calls"
        assert first[2] + second[2] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_stops_while_it_compiles_holds_up_nobody(number: signal.Signals, tmp_path: Path) -> None:
    with start(HANG, tmp_path) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with start(COMPILE, tmp_path) as waiting:
                time.sleep(1)
                holder.send_signal(number)
                assert counts(waiting) == [[0, 1, 1]]
        finally:
            holder.kill()
