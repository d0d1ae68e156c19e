import sys

from eval.pareto.command import main

sys.exit(main())
