"""The separate scale-up module: volume transfer and the full-size SFT, from a mixture file alone."""
