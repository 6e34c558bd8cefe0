"""Evaluation: load methods, measure them image by image, record and report the results."""
