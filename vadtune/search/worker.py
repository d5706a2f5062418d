"""What a process that trains trials needs, imported before there is a trial: that takes seconds.

Ray imports this module in each process it starts; see process.local_ray.
"""

import gc

import vadtune.search.trainable  # noqa: F401
from vadtune.native import kernels

for name in ("decoder", "linear"):
    kernels(name)
gc.freeze()  # what was imported stays; to look through it again and again for garbage takes time
