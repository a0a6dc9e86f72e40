"""Options and arguments that several commands take, and how a mixture file is opened by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ideal_proxy.mixture import MixtureFile

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Track = Annotated[
    list[str] | None, typer.Option(help="Log to wandb, mlflow, trackio or tensorboard as well; may repeat.")
]
Push = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload it with a card; private by default.")
]
Public = Annotated[bool, typer.Option("--public", help="With --push-to-hub: for everybody to see.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the mixture.json in it.")]
Mixture = Annotated[Path, typer.Argument(metavar="MIXTURE.JSON", help="A mixture file, or a run directory.")]


def open_mixture(
    place: Path, moved: Sequence[str] | None = None, option: str = "--source"
) -> tuple[MixtureFile, Path, dict[str, str]]:
    """Read a mixture file; give its folder and, from options NAME=PATH, where domains lie now."""
    from ideal_proxy.errors import UsageError
    from ideal_proxy.mixture import load_mixture
    from ideal_proxy.store import mixture_file

    place = mixture_file(place)
    mixture = load_mixture(place)
    names = [domain.name for domain in mixture.domains]
    paths = {}
    for given in moved or ():
        name, _, path = given.partition("=")
        if not path or name not in names:
            raise UsageError(f"{option} {given!r} must be NAME=PATH with NAME one of {', '.join(names)}")
        paths[name] = path
    return mixture, place.resolve().parent, paths
