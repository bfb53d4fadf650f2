"""The names that other code imports, one module per origin: changing one import is enough.

`rslad`, `trades`, `mart`, `adaad`, `robust_overfitting` and `torchattacks` keep their origin's
signatures, defaults, returns, noise and modes. What differs, in all of them: attacks compute no
parameter gradients, so they leave none in `.grad`; images outside the box are refused; a model
keeps its modes where an attack raises. Keywords after the published ones:

    engine: False runs eager autograd instead of the compiled program.
    precision: "fp32", "tf32", "bf16", "fp16", None: autocast's state.
"""

from fastard.compat import adaad, mart, robust_overfitting, rslad, torchattacks, trades

__all__ = ["adaad", "mart", "robust_overfitting", "rslad", "torchattacks", "trades"]
