"""The album page: templates and static files."""
