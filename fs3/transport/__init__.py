"""How fs3's processes talk: framed sockets for chunks (`frame_core`, `messages`), gRPC for everything else (`rpc`)."""
