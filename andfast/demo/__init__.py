"""The page to try andfast in a browser: `python -m andfast.demo`."""
