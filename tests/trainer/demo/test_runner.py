"""The loop and its room: stages in order, the first that cannot go on ends them, and nothing is left behind."""

import os
import signal
from dataclasses import dataclass

import psutil
import pytest

from fs3.errors import Unavailable
from fs3_trainer.demo.demo import Stage
from fs3_trainer.demo.outcome import Check, FellShort
from fs3_trainer.demo.runner import Interrupted, execute, room, save_logs, signals_interrupt
from fs3_trainer.demo.settings import QUICK
from fs3_trainer.demo.waiting import wait_until

FOREVER = ("python", "-c", "import signal; signal.pause()")
STUBBORN = (
    "python",
    "-c",
    "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()",
)


@dataclass(frozen=True)
class Seen:
    ok: bool

    @property
    def checks(self):
        return (Check("the sky is up", "looked", self.ok),)

    @property
    def figures(self):
        return ()


def stage(name, run) -> Stage:
    return Stage(name, name.title(), "a stage", run)


def raises(error):
    def run(demo):
        raise error

    return run


def test_stages_run_in_order_and_see_earlier_results(narrator):
    with room(QUICK, narrator, keep=False) as demo:
        runs = execute(demo, [stage("a", lambda demo: Seen(True)), stage("b", lambda demo: demo.result(Seen))])
    assert [run.verdict for run in runs] == ["passed", "passed"]
    assert runs[1].outcome is runs[0].outcome


def test_a_check_that_fails_does_not_end_the_demo(narrator, said):
    with room(QUICK, narrator, keep=False) as demo:
        runs = execute(demo, [stage("a", lambda demo: Seen(False)), stage("b", lambda demo: Seen(True))])
    assert [run.verdict for run in runs] == ["fell short", "passed"]
    assert runs[0].problems == ("the sky is up: looked",)
    assert "FAIL the sky is up (looked)" in said()


@pytest.mark.parametrize("error", [FellShort("no luck"), Unavailable("no luck"), OSError("no luck")])
def test_a_stage_that_cannot_go_on_ends_the_demo(narrator, error):
    with room(QUICK, narrator, keep=False) as demo:
        runs = execute(demo, [stage("a", raises(error)), stage("b", lambda demo: Seen(True))])
    assert [(run.verdict, run.problems) for run in runs] == [("fell short", ("no luck",)), ("not run", ())]


@pytest.mark.parametrize("command", [FOREVER, STUBBORN])
def test_the_room_leaves_no_process_and_no_folder(narrator, monkeypatch, command):
    monkeypatch.setattr("fs3_trainer.demo.commands.END_S", 1.0)
    with pytest.raises(ZeroDivisionError), room(QUICK, narrator, keep=False) as demo:
        running = demo.commands.start(*command)
        if command is STUBBORN:
            wait_until(lambda: "deaf" in running.log.read_text(), what="its word", timeout_s=30)
        raise ZeroDivisionError
    assert not psutil.pid_exists(running.pid)
    assert running.typed.status == (-signal.SIGTERM if command is FOREVER else -signal.SIGKILL)
    assert not demo.folder.exists()


def test_keep_keeps_the_folder(narrator, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with room(QUICK, narrator, keep=True) as demo:
        pass
    assert demo.folder.is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_that_is_waited_for(narrator, number):
    def interrupted(demo):
        os.kill(os.getpid(), number)
        demo.commands.run(*FOREVER, timeout_s=60, busy="waiting")

    with pytest.raises(Interrupted) as caught, signals_interrupt(), room(QUICK, narrator, keep=False) as demo:
        execute(demo, [stage("a", interrupted)])
    assert caught.value.number == number
    assert all(typed.status is not None for typed in demo.commands.typed)
    assert not demo.folder.exists()


def test_a_command_that_fails_says_why(narrator):
    code = "import sys; print('on the way'); print('the reason', file=sys.stderr); sys.exit(3)"
    with room(QUICK, narrator, keep=False) as demo, pytest.raises(FellShort, match=r"exit 3: the reason$"):
        demo.commands.run("python", "-c", code, timeout_s=60, busy="failing")


def test_a_command_that_takes_too_long_is_ended(narrator):
    with room(QUICK, narrator, keep=False) as demo, pytest.raises(FellShort, match="still ran after"):
        demo.commands.run(*FOREVER, timeout_s=0.1, busy="waiting")
    assert demo.commands.typed[0].status == -signal.SIGTERM


def test_logs_are_saved(narrator, tmp_path):
    with room(QUICK, narrator, keep=False) as demo:
        demo.commands.run("python", "-c", "print('hello')", timeout_s=60, busy="talking")
        demo.metrics_file.write_text("{}\n")
        save_logs(demo, tmp_path / "log")
    assert (tmp_path / "log" / "commands" / "01-python.out").read_text() == "hello\n"
    assert (tmp_path / "log" / "metrics.jsonl").read_text() == "{}\n"
