"""Launchers for sweeps that Hydra does not have, or not for what is current."""
