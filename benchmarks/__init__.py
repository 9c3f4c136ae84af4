"""What was measured, and how: ``python -m benchmarks.store.bench_store`` from the repository's root.

They lie as the packages that they measure; ``common`` is shared.
"""
