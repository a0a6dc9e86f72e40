from .text import applied_table as applied_table
from .text import applied_values as applied_values
from .text import plan_tables as plan_tables
from .text import result_tables as result_tables
from .whatif import read_settings as read_settings
from .whatif import what_if as what_if
from .whatif import what_if_tables as what_if_tables
from .write import write_report as write_report
