"""The command line: thin commands; every heavy import stands inside the command that needs it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
