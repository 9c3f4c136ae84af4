"""Token features of one picture: what they are, how they are laid out, and how they become bytes; arithmetic alone."""
