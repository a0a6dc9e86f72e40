from .domains import Domains as Domains
from .errors import UserError as UserError
from .mixture import MixtureFile as MixtureFile
from .mixture import apply_mixture as apply_mixture
from .mixture import load_mixture as load_mixture
from .mixture import save_mixture as save_mixture
from .optimizer import Constraints as Constraints
from .optimizer import Objective as Objective
from .optimizer import Problem as Problem
from .optimizer import optimize as optimize
from .optimizer import pareto as pareto
from .pipeline import SearchRun as SearchRun
from .pipeline import load_run as load_run
from .pipeline import search as search
from .report import what_if as what_if
from .report import write_report as write_report
from .response import ResponseModel as ResponseModel

__version__: str
