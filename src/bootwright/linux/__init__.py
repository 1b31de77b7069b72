"""System calls, one family a file. Imports nothing from above but errors and digests."""
