"""Lets the tests here import `kv_workload`, which also runs as a program of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
