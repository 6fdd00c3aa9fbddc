"""Search over a network's outputs: options, the compiled search, and lists of ids in and out."""
