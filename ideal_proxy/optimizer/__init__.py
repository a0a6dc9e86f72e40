"""Volumes under limits: the best mixture by a fitted response, with a proof of how good it is.

In: a response surface, a `Problem` and `Constraints`. Out: an `Optimum` with its certificate, whole rows, a
Pareto front or the limits that contradict each other.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
