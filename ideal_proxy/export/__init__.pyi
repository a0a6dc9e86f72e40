from .hand_over import export_mixture as export_mixture
from .hand_over import export_table as export_table
from .hub import data_card as data_card
from .hub import licences_of as licences_of
from .hub import model_card as model_card
from .hub import push as push
