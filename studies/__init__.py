"""Studies: training runs compared on real and simulated images, and the tables and figures made of them."""

import andfast  # noqa: F401  # before torch, whose idle threads would spin
