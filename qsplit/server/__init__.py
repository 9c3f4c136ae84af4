"""The service: an album over HTTP, in OpenAI's form under ``/v1`` and in its own under ``/api/v1``, and its page."""
