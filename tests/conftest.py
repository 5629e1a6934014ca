"""Set before torch is imported anywhere."""

from __future__ import annotations

import os

# The models of the tests are tiny: a second thread has nothing to do but wait for the first, and
# on a busy machine it waits so long that a test of seconds takes minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
