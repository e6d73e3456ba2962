"""Configurations as Hydra composes them."""

from __future__ import annotations

import functools

import hydra
from omegaconf import DictConfig

from tta.cli import CONFIGS


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """Compose the configuration of ``tta``, once for all tests that want the same."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("config", list(overrides))
