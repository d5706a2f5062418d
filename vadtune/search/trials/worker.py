"""What a process that trains trials needs, imported before there is a trial: that takes seconds.

Ray imports this module in each process it starts; see process.local_ray.
"""

from vadtune.search.driver.process import imports

with imports():
    from vadtune.native import kernels
    from vadtune.search.trials import trainable, trial_runner  # noqa: F401

    for name in ("decoder", "linear"):
        kernels(name)
