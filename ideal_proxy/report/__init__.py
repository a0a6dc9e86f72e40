"""What people look at: figures, the page, tables for the terminal, answers to what-if questions.

In: a finished search. Out: text, figures and one HTML page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
