"""Benchmarks of andfast's operations, and reports of what they and training runs measured."""

import andfast  # noqa: F401  # before torch, whose idle threads would spin
