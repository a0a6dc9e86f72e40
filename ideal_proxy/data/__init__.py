"""Rows of any source as token rows with masks.

In: paths, globs, folders, hub ids and the embedded demo, as the run file names them. Out: rows in one form,
their keys, and `TokenRows`, arrays of tokens that say which of them carry loss. Knows nothing of mixtures or
models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
