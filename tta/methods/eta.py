"""ETA: Tent on samples that are sure and unlike those before."""

from __future__ import annotations

from tta.methods.selective import SelectiveMethod


class ETA(SelectiveMethod):
    """Efficient test-time adaptation, EATA without its regulariser (arXiv:2204.02610).

    See ``SelectiveMethod`` for what it does, its arguments and errors. The logits are those of the forward pass before
    the update. The official code's ``reset`` keeps the moving average m of the predictions; here it is forgotten with
    the rest, so that a domain does not depend on the one before.
    """
