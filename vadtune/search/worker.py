"""What a process that trains trials needs, imported before there is a trial: that takes seconds.

Ray imports this module in each process it starts; see process.local_ray.
"""

import gc

from vadtune.native import kernels

gc.disable()  # what is imported stays; to look through it again and again for garbage takes a second
try:
    from vadtune.search import single, trainable  # noqa: F401

    for name in ("decoder", "linear"):
        kernels(name)
    gc.freeze()
finally:
    gc.enable()
