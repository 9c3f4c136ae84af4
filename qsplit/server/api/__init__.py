"""The album's own routes."""
