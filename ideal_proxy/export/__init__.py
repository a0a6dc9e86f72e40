"""A mixture handed to another trainer.

In: a mixture file and a target's name. Out: the target's own configuration, the rows where it needs them, and
the counts that it will really draw.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
