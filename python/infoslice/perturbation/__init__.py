"""What is put into a network when there is no data: maximum-entropy inputs.

The Gaussian has the largest entropy at a given mean and variance, the uniform distribution on a
given range. Both ignore what the network has learnt to expect, and deep layers then see activations
that no real input causes. A *matched* perturbation starts from Gaussian noise and is fitted until
the batch-norm layers see the means and variances recorded in the checkpoint: the noise is moved no
further than these moments ask for, and still no data is used.
"""

from infoslice.perturbation.inputs import Inputs, evaluating
from infoslice.perturbation.match import match, recorded_layers
from infoslice.perturbation.noise import Kind, noise
from infoslice.perturbation.perturb import Perturbation, perturb, resolve
from infoslice.perturbation.tokens import (
    generated_tokens,
    predicts_next_token,
    reads_tokens,
    uniform_tokens,
)

__all__ = [
    "Inputs",
    "Kind",
    "Perturbation",
    "evaluating",
    "generated_tokens",
    "match",
    "noise",
    "perturb",
    "predicts_next_token",
    "reads_tokens",
    "recorded_layers",
    "resolve",
    "uniform_tokens",
]
