"""Pictures that come in over HTTP."""
