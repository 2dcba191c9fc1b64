"""`fs3 bench`: load on a user's own cluster, from as many processes as asked for, with what they saw."""
