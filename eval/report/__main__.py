import sys

from eval.report.page import main
from ogpsa.utils.command_line import run_program

sys.exit(run_program(main))
