"""What an update that comes again is good for: it has the bytes which the disk may have lost since it came first.

A pending version is read again only for a successor that wants the whole chunk, and is committed unread where nobody is
behind. Its bytes may be lost by then, and the update at hand: a retry of its client, or the replica in front, which
sends the whole chunk. They are compared with the record, and written anew (`regain`); to go on without them would be to
acknowledge what is lost. The same holds for an update that was applied before (`still_true`), and for a SYNCING replica
that is sent damaged bytes of a version which it has itself from earlier times (`keep_better`), be it as a pending one:
only the last replica's commit is synced, so after a power loss the others have pending what everybody acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable

from fs3 import checksum
from fs3.errors import Corrupt, Fs3Error, Invalid, NotFound, Unavailable
from fs3.ids import chunk_name
from fs3.storage.craq_core import Decision, Say
from fs3.storage.engine_api import ChunkData
from fs3.storage.repair import Mend
from fs3.storage.write_item import Item
from fs3.storage.write_locks import Key
from fs3.transport.messages import Op, UpdateFlag


def regain(item: Item) -> None:
    """Give what an item has pending its bytes again, if they are lost here and its update has them.

    Raises: Invalid: a client sends other bytes than before under the same number; others would stage these.
    """
    assert item.staged is not None
    try:
        found = item.engine.read_chunk(*item.key, pending=True)
        if item.from_client and not _is_of(found, item):
            client, channel, seq = item.identity
            raise Invalid(
                f"{chunk_name(*item.key[1:])}: update {seq} of channel {channel} of client {client} was something else"
                " when it was sent before"
            )
    except Corrupt:
        try:
            item.engine.restage(item.update(item.staged.version))
        except Fs3Error:
            return  # it is seen to as if its update were not at hand


def still_true(item: Item, decision: Decision, mended: Callable[[Key], Mend]) -> Decision:
    """The answer to an update that was applied before. It would hide that the bytes are lost since; but whoever sends
    the update again may have brought them."""
    if decision.error is not None or item.engine.damaged().get(item.key, 0) != (decision.version or -1):
        return decision
    if item.op in (Op.REPLACE, Op.PUT_IF_ABSENT):
        try:
            item.engine.repair(*item.key, decision.version, item.data, item.fine)
        except Fs3Error:
            pass
        else:
            return decision
    outcome = mended(item.key)
    if outcome is Mend.WHOLE:
        return decision
    what = f"{chunk_name(*item.key[1:])}: update {decision.version} was applied, and its bytes are "
    if outcome is Mend.UNKNOWN:
        return Decision(Say.ANSWER, error=Unavailable(f"{what}damaged here; others cannot be asked for them now"))
    return Decision(Say.ANSWER, error=Corrupt(f"{what}lost since"))


def _is_of(pending: ChunkData, item: Item) -> bool:
    """Whether what is pending can have been made by this update."""
    if pending.removed or item.op is Op.REMOVE:
        return pending.removed == (item.op is Op.REMOVE)
    if item.op is Op.TRUNCATE:
        return pending.length == item.offset
    begin = item.offset if item.op is Op.WRITE else 0
    whole = item.op is not Op.WRITE
    return pending.data[begin : None if whole else begin + len(item.data)] == item.data


def keep_better(item: Item) -> None:
    """Damaged bytes came: take those of the same version that were kept here from earlier times, if they are good."""
    for pending in (False, True):
        try:
            found = item.engine.read_chunk(*item.key, pending=pending)
        except (NotFound, Corrupt):
            continue
        crc = checksum.crc(checksum.coarse_from_fine(found.fine, found.length).tobytes())
        if (found.version, found.length, crc) == (item.version, len(item.data), item.recorded_crc):
            item.data, item.fine = found.data, found.fine
            item.flags &= ~UpdateFlag.DAMAGED
            return
