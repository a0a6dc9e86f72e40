"""One proxy: built, trained on one mixture, judged by loss or metric.

In: token rows in training order and settings. Out: weights, losses of every reference row, scores and cost.
Pretrained models, for proxies and for full size, come from here too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
