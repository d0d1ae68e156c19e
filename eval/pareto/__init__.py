"""Safety against utility of finished runs: tables, fronts, plots."""
