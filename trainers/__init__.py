"""One published method per file: a loss, a weighting, a perturbation or a selection."""
