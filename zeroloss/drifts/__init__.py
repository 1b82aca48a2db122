"""The drift along the zero-loss set: Reg and Sigma, both time scales, and the verdict on a noise."""

from zeroloss.drifts._drift import Drift, drift, regularizer
from zeroloss.drifts._verdict import Verdict, classify

__all__ = ["Drift", "Verdict", "classify", "drift", "regularizer"]
