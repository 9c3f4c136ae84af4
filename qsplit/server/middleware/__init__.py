"""What every request passes through: keys, bounds, logs, metrics, errors."""
