"""Many proxies: queue, retries, resume, on this machine or a Ray cluster.

In: the runs that are wanted, each a mixture, a seed and a rate. Out: a folder for every finished run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
