"""Search with labels: DEM* of arXiv:2511.03256, and any other continuous option, by TPE with Optuna."""
