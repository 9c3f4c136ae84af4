"""vLLM beside the store: its server as a language half, and the store as its encoder's cache."""
