"""Runs on disk: what they compute, the folder they live in, sweeps, and reading them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
