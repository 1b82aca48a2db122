"""Figures and the page of a run, built from its folder; and its results in sentences and tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
