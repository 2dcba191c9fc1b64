"""meta: the namespace of the cluster, stateless above a transactional key-value store."""
