"""A whole cluster on one machine: what `fs3 up` and `fs3 down` do."""
