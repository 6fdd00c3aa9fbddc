"""Training: `bart_hk.training.loop.train(config)` is what `bart-hk-train` calls."""
