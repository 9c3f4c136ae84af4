"""What keeps a store healthy: status, verification, drift, garbage."""
