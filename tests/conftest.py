"""Set before torch is imported anywhere."""

from __future__ import annotations

import os

from hypothesis import settings

# The models of the tests are tiny: a second thread has nothing to do but wait for the first, and
# on a busy machine it waits so long that a test of seconds takes minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no fault of what is tested: no example has to end in a fifth of a second.
settings.register_profile("any machine", settings.default, deadline=None)
settings.load_profile("any machine")
