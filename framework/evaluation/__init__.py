"""Benchmarks, one file each: what to forget, what to keep, what to measure; and their metrics."""
