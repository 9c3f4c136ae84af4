"""How long a test waits for what must come: generously, since a machine may have much else to do."""

from __future__ import annotations

PATIENCE = 240.0  # seconds
