"""One typed repository for each table of the store."""
