"""The response law: how the loss of every capability answers to the volumes of all domains.

In: finished runs as numbers, and responses measured by gradients. Out: a fitted `ResponseModel`, which predicts
losses with intervals. Knows nothing of limits, rows or trainings.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
