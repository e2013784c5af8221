"""Cost: bytes, bits, bit operations and latency of a configuration."""
