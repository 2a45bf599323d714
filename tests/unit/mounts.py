"""A mount namespace for tests that mount something."""

from __future__ import annotations

import os

# Root needs no user namespace for it, and would not reach a checkout in another user's directory
# from one.
UNSHARE = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
