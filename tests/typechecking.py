"""The type checker of the tests: beartype, with Python's rule that an int may stand for a float."""

import beartype

checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
