"""ideal-proxy: how many rows of each data set should go into this fine-tune?

The names of `__all__` are the public interface; each is imported when it is first used, so that `import ideal_proxy`
is instant.

    from ideal_proxy import search, load_run, write_report, what_if

    run = search("mix.yaml", "runs/mix")          # or load_run("runs/mix")
    run.result["verdict"]["sentence"]
    what_if(run, {"coding": 6000, "trust": "-20%"}).gain
    write_report(run)

The figures are in `ideal_proxy.report.plots`; each room (`ideal_proxy.data`, ...) lists its own public names.
"""

import importlib.metadata

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = importlib.metadata.version("ideal-proxy")
except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+checkout"
