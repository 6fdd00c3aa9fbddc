"""From files to planned, padded batches of ids, in numpy. Nothing here imports jax."""
