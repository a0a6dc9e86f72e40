"""Full size, from the mixture file alone.

In: a mixture file and a model. Out: the volumes at full size, the trained model, and what was observed against
what was predicted.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
