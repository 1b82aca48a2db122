"""Closed forms, with their source; nothing here uses the package."""

import numpy as np


def hyperbola(t: float, rate: float, start: float = np.log(2.0)) -> np.ndarray:
    """A flow on w_1 w_2 = 1, w = (e^s, e^-s), with sinh 2s(t) = sinh 2s(0) exp(-rate t).

    theory.md, section 6: `rate` 2 for weight noise in t = alpha sigma^2 k, 1 for label noise (one
    residual) in t = alpha^2 sigma^2 k. The default start is (2, 1/2).
    """
    s = np.arcsinh(np.sinh(2 * start) * np.exp(-rate * t)) / 2
    return np.array([np.exp(s), np.exp(-s)])


def hyperbola_dropconnect(t: float, start: float = np.log(2.0)) -> np.ndarray:
    """DropConnect on the hyperbola: Sigma = 2H, twice that of label noise, hence twice as fast.

    theory.md, section 4: degenerate, deterministic, Sigma = 2H; label noise has Sigma = H / N.
    """
    return hyperbola(2 * t, 1.0, start)
