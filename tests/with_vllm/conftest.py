"""What vLLM's own environment runs is no test of this one."""

collect_ignore = ["offline.py", "sitecustomize.py"]
