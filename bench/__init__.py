"""Benchmarks of andfast's operations, and reports of what they and training runs measured."""
