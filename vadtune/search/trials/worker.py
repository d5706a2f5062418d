"""What a process that trains trials needs, imported before there is a trial: that takes seconds.

Ray imports this module in each process it starts; see process.local_ray.
"""

from vadtune.search.driver.process import imports

with imports():
    from vadtune import native
    from vadtune.search.trials import trainable, trial_runner  # noqa: F401

    native.is_available()  # imports the kernels
