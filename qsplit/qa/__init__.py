"""Questions and checks over stored features."""
