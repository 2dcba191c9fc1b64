"""The transactional, ordered key-value store that holds everything fs3 must agree on (see `api`)."""
