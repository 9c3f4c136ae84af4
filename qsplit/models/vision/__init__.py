"""The vision half: pictures -> token features, one by one or many in a pass."""
