"""The bytes of strangers, decoded in processes of their own that may take little and open nothing."""
