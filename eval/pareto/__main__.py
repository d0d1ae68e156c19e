import sys

from eval.pareto.command import main
from ogpsa.utils.command_line import run_program

sys.exit(run_program(main))
