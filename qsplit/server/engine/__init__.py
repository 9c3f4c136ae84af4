"""The models that a service answers with: admitting, batching and finishing requests."""
