"""Tests reach no network: what would download fails at once instead. `HF_HUB_OFFLINE=0 pytest -m network` lifts it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
