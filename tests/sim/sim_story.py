"""The transcript of a seed that failed: everything that happened to one chunk and its chain, in order, for people.

A run keeps only what it needs to be checked. When it fails it is run again, being the same for the same seed, with a
`Story` that listens: what clients asked of the chunk and were told, what each replica decided, staged, committed and
dropped, how the chain changed and what each target made of it, faults, starts and ends of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from sim_history import Chunk, Operation, describe
from sim_kernel import Event, Simulation

from fs3.ids import chunk_name
from fs3.routing import Routing
from fs3.storage import target_core
from fs3.storage.chain_state import ChainState
from fs3.storage.engine import Engine

_MOST_LINES = 20_000
_PLAIN = {"fault", "heal", "start", "kill", "power_loss", "pause", "resume"}


class Story:
    """Lines about a chunk (None: none in particular) and a chain (None: every chain). Enter it for the run."""

    def __init__(self, sim: Simulation, chunk: Chunk | None, chain: int | None) -> None:
        self._sim = sim
        self._chunk = chunk
        self._chain = chain
        self._targets: set[int] = set()
        self._told: dict[tuple[int, int], target_core.Stand] = {}
        self._replaced: list[tuple[type, str, Any]] = []
        self.lines: list[str] = []
        sim.subscribe(self._hear)

    def render(self, last: int = 400) -> str:
        """The last lines."""
        left_out = len(self.lines) - last
        head = [f"({left_out} lines before this are left out)"] if left_out > 0 else []
        return "\n".join(head + self.lines[-last:])

    def __enter__(self) -> Story:
        for owner, name, tell in (
            (Engine, "stage", self._updates),
            (Engine, "stage_and_commit", self._updates),
            (Engine, "commit", self._staged),
            (Engine, "abort", self._staged),
            (ChainState, "_step", self._stepped),
        ):
            original = getattr(owner, name)
            self._replaced.append((owner, name, original))
            setattr(owner, name, _telling(original, name, tell))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, original in self._replaced:
            setattr(owner, name, original)

    def say(self, who: str, text: str) -> None:
        """One more line."""
        if len(self.lines) < _MOST_LINES:
            self.lines.append(f"{self._sim.now:11.6f} {who:<14} {text}")

    # Events

    def _hear(self, event: Event) -> None:
        fields = event.fields
        if event.kind == "operation":
            self._operation(fields["operation"])
        elif event.kind == "routing":
            self._routing(event.process, fields["before"], fields["after"])
        elif event.kind == "disk":
            self.say(event.process, f"disk: {fields}")
        elif event.kind in _PLAIN:
            said = ", ".join(f"{name} {value}" for name, value in fields.items() if not isinstance(value, Routing))
            self.say(event.process, f"{event.kind.upper()} {said}")
        elif event.kind == "log" and fields["level"] >= 30:
            self.say(event.process, f"logs: {fields['line']}")

    def _operation(self, operation: Operation) -> None:
        if operation.chunk != self._chunk and (self._chunk is not None or operation.chain != self._chain):
            return
        if self._chunk is None:
            self.say(operation.client, f"   {chunk_name(*operation.chunk)}:")
        if operation.returned is None:
            wrote = f": {describe(operation.data, operation.offset)}" if operation.data else ""
            self.say(operation.client, f"-> {operation}{wrote}")
        else:
            self.say(operation.client, f"<- {operation}: {operation.answer()}")

    def _routing(self, process: str, before: Routing, after: Routing) -> None:
        for chain in after.chains.values():
            if self._chain is not None and chain.chain_id != self._chain:
                continue
            self._targets.update(chain.targets)
            earlier = before.chains.get(chain.chain_id)
            if earlier is not None and earlier.version == chain.version:
                continue
            members = ", ".join(
                f"{target_id} on node {after.targets[target_id].node_id} {after.targets[target_id].state.name}"
                for target_id in chain.targets
            )
            self.say(process, f"routing {after.version}: chain {chain.chain_id} v{chain.version}: {members}")

    # Inside of a replica

    def _updates(self, engine: Engine, name: str, args: tuple[Any, ...], result: Any) -> None:
        for update, done in zip(args[0], result, strict=True):
            if self._is_told(update):
                data = describe(bytes(update.data), update.offset)
                what = f"{name} {self._which(update)}{update.op.name} v{update.version} {data}"
                flags = f" {update.flags.name}" if update.flags else ""
                of = f" for {update.client:x}/{update.channel}/{update.seq}"
                self._replica(update.target_id, f"{what}{flags}{of} -> {_short(done)}")

    def _staged(self, engine: Engine, name: str, args: tuple[Any, ...], result: Any) -> None:
        for one in args[0]:
            if self._is_told(one):
                self._replica(one.target_id, f"{name} {self._which(one)}v{one.version}")

    def _is_told(self, one: Any) -> bool:
        if self._chunk is not None:
            return (one.hi, one.lo) == self._chunk
        return self._chain is not None and one.target_id in self._targets

    def _which(self, one: Any) -> str:
        return "" if self._chunk is not None else f"{chunk_name(one.hi, one.lo)} "

    def _replica(self, target_id: int, text: str) -> None:
        current = self._sim.current
        self.say(current.process.name if current is not None else "", f"target {target_id}: {text}")

    def _stepped(self, state: ChainState, name: str, args: tuple[Any, ...], result: Any) -> None:
        target_id = args[0]
        if self._chain is not None and target_id not in self._targets:
            return
        stand: target_core.Stand = state.stand(target_id)
        if self._told.get((id(state), target_id)) is not stand:
            self._told[id(state), target_id] = stand
            self._replica(target_id, f"is {stand.phase.name}")


def _telling(original: Callable[..., Any], name: str, tell: Callable[..., None]) -> Callable[..., Any]:
    def telling(owner: Any, *args: Any, **named: Any) -> Any:
        try:
            result = original(owner, *args, **named)
        except Exception as error:
            if name in ("commit", "abort", "stage", "stage_and_commit"):
                tell(owner, f"{name} FAILED {type(error).__name__}: {error}:", args, [error] * len(args[0]))
            raise
        tell(owner, name, args, result)
        return result

    return telling


def _short(done: Any) -> str:
    if isinstance(done, Exception):
        return f"{type(done).__name__}: {done}"
    return f"v{done.version}, {done.length} bytes{'' if done.applied else ', nothing to do'}"
