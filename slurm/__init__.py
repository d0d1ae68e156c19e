"""Sweeps on a SLURM cluster: rows are queued, requeued, watched and plotted."""
