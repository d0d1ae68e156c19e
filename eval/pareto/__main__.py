import sys

from eval.pareto.collect import main

sys.exit(main())
