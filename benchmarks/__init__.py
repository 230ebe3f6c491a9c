"""Speed of the hot paths, always beside the peer in the same run: ``python -m benchmarks NAME``."""
