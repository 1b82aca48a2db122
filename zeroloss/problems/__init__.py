"""Named problems: small ones with a known answer, and networks on real data. See docs/problems.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
