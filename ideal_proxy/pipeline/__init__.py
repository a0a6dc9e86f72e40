"""A search from run file to result, stage by stage.

In: a run file. Out: a run directory; read again, a `SearchRun`. Plan, preparation, design, laboratory,
proposal, verdict and status are its stages.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
