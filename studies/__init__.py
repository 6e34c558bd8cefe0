"""Studies: training runs compared on real and simulated images, and the tables and figures made of them."""
