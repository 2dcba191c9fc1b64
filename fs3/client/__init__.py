"""What runs in a client process: routing, the read and write paths, metadata calls."""
