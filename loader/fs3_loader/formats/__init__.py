"""The formats of what a dataset stores: token shards and the manifest (docs/formats.md)."""
