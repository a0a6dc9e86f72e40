"""`python -m ideal_proxy`."""

from ideal_proxy.cli import main

main(prog_name="ideal-proxy")
