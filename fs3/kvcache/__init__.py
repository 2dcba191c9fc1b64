"""The KV cache of inference runners, offloaded to fs3: pages of attention state, found by what was computed.

A page's chunk id is a digest of its key and its chain follows from that digest, so the storage daemons' chunk indexes
are the key index; there is no other (3FS's KV cache is not released; LMCache and Mooncake keep an index process, whose
loss loses the cache). A failed, removed or late read is a miss, never wrong bytes.
"""

from fs3.kvcache.keys_core import Namespace, page_keys
from fs3.kvcache.slab import PageSlab
from fs3.kvcache.store import KVStats, KVStore

__all__ = ["KVStats", "KVStore", "Namespace", "PageSlab", "page_keys"]
