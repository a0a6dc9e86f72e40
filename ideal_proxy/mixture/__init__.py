"""The mixture file, and from it the exact rows.

In: volumes by domain and a seed. Out: `mixture.json`, deterministic draws and the order of training, and the
rows written out for any trainer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
