"""ideal-proxy: how many rows of each data set should go into this fine-tune?"""

from __future__ import annotations

__version__ = "0.1.0"
