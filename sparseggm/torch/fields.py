"""The names of `sparseggm.fields` for tensors: the same functions, which take Gaussians of either kind.

Posterior, evidence, predictions and constraints can be differentiated twice with respect to means, factors or
precisions, values of A, observations and variances.
"""

from sparseggm.fields import Constrained, LinearObservation, Prediction, constrain

__all__ = ["Constrained", "LinearObservation", "Prediction", "constrain"]
