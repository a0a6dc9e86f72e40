"""Responses measured by gradients of trained models.

In: a trained model, training and reference rows. Out: a `ResponseMatrix` with standard errors and its cost.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
