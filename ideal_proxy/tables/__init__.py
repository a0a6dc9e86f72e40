"""Tables of runs that somebody else made.

In: CSV files of ratios and metrics. Out: a fitted response, predictions and a mixture file.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
