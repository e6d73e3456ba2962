"""Draw what the objectives do to logits, from their own gradients, and what methods do to predictions.

    python scripts/plot_objectives.py rewards --out docs/rewards
    python scripts/plot_objectives.py predictions runs/demo --out docs/predictions

`rewards`: the reward on the largest logit, -dL/dz_max, against its probability, for 10 classes (figures 2 to 4 of
arXiv:2511.03256). `predictions`: the classes predicted in finished runs, most frequent first, against the labels
(easy-class bias). Both write OUT.png and OUT.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tta.compare import find_runs
from tta.objectives import CADF, DEM, EM, AdaDEM, Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 10
PANELS: dict[str, Mapping[str, Objective]] = {
    "EM and AdaDEM": {
        "EM": EM(),
        "CADF": CADF(),
        "AdaDEM-Norm": AdaDEM(calibrate=False),
        "AdaDEM-MEC": AdaDEM(normalize=False),
        "AdaDEM": AdaDEM(),
    },
    "DEM, alpha = 1": {f"tau = {tau}": DEM(tau, 1) for tau in (0.5, 0.8, 1.0, 1.4, 2.0)},
    "DEM, tau = 1": {f"alpha = {alpha}": DEM(1, alpha) for alpha in (0.0, 0.5, 1.0, 1.5, 2.0)},
}


def main() -> None:
    """Draw one of the two figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rewards", "predictions"])
    parser.add_argument("runs", nargs="*", type=Path, help="folders that hold runs, for predictions")
    parser.add_argument("--out", type=Path, required=True, help="file name without suffix")
    options = parser.parse_args()
    if options.what == "predictions" and not options.runs:
        parser.error("predictions needs one or more folders that hold runs")
    figure = rewards() if options.what == "rewards" else predictions(options.runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        figure.savefig(options.out.with_suffix(f".{suffix}"), dpi=150)
    print(f"written: {options.out}.png, {options.out}.svg")


def rewards() -> Any:
    """Plot the reward on the largest logit; the other classes share what is left of the probability."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(13, 4), sharex=True, layout="constrained")
    for axes, (title, objectives) in zip(panels, PANELS.items(), strict=True):
        for name, objective in objectives.items():
            axes.plot(*reward(objective), label=name)
        axes.set(title=title, xlabel="max p, the largest probability", xlim=(0, 1))
        _finish(axes)
    panels[0].set_ylabel("reward on the largest logit, $-\\partial L / \\partial z_{max}$ (nats)")
    return figure


def reward(objective: Objective) -> tuple[Tensor, Tensor]:
    """Return max p from 1/C to 1 and the reward there; each point is a batch of one sample, met first."""
    p = torch.linspace(1 / CLASSES + 1e-3, 1 - 1e-6, 400, dtype=torch.float64)
    others = ((1 - p) / (CLASSES - 1)).log().unsqueeze(-1).expand(-1, CLASSES - 1)
    # The other logits are 0, so that T is not only known up to a constant.
    logits = torch.cat((p.log().unsqueeze(-1) - others[:, :1], torch.zeros_like(others)), dim=-1)
    gradients = []
    for point in logits:
        objective.reset()
        batch = point.unsqueeze(0).requires_grad_()
        gradients.append(torch.autograd.grad(objective(batch).sum(), batch)[0][0, 0])
    return p, -torch.stack(gradients)


def predictions(places: list[Path]) -> Any:
    """Plot how often each class is predicted, most frequent first, in per cent of all images."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for run in find_runs(places):
        counts = pd.read_csv(run.path / "classes.csv").groupby("class")[["labels", "predictions"]].sum()
        shares = 100 * counts / counts["labels"].sum()
        rank = range(1, len(shares) + 1)
        axes.plot(rank, shares["predictions"].sort_values(ascending=False), marker="o", label=run.label)
    # Those of the last run: they share the stream.
    axes.plot(rank, shares["labels"].sort_values(ascending=False), color="0.3", linestyle="--", label="labels")
    axes.set(xlabel="rank of the class by frequency", ylabel="share of all images (%)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes)
    return figure


def _finish(axes: Axes) -> None:
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, handlelength=1.4)


if __name__ == "__main__":
    main()
