from .hand_over import export_mixture as export_mixture
from .hand_over import export_table as export_table
