"""Console scripts. Hydra is used here and nowhere else."""
