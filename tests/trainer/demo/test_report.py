"""The report of a real training run: one page that needs nothing else, with every check, figure and command on it."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from fs3_trainer.demo.commands import Typed
from fs3_trainer.demo.outcome import StageRun
from fs3_trainer.demo.report import print_report, write_page
from fs3_trainer.demo.runner import room
from fs3_trainer.demo.settings import QUICK
from fs3_trainer.demo.stages.generation import Generated, GenerateRun
from fs3_trainer.demo.stages.outage import Outage
from fs3_trainer.demo.waiting import wait_until
from fs3_trainer.demo.watch import Seen


@pytest.fixture
def outage(sampler, resumed) -> Outage:
    sampler.start()
    wait_until(lambda: sampler.last_ended - sampler.first_began > 1.0, what="calls", timeout_s=60)
    sampled = sampler.stop()
    began, ended = sampled.reads[0].began, max(call.ended for call in (*sampled.reads, *sampled.writes))
    killed, noticed, returned, recovered = (began + (ended - began) * part for part in (0.2, 0.3, 0.6, 0.8))
    return Outage(
        daemon="storage-2",
        killed=killed,
        noticed=noticed,
        returned=returned,
        recovered=recovered,
        sampled=sampled,
        seen=(Seen(began, 1, 36, 36, 3), Seen(noticed, 2, 24, 36, 2), Seen(recovered, 3, 36, 36, 3)),
        lost_writes=(),
        status_serving=36,
        status_targets=36,
        trainer_runs=True,
        steps_without=2,
        checkpoints_without=(3,),
    )


@pytest.fixture
def generated() -> Generated:
    def run(name: str, loaded: int) -> GenerateRun:
        return GenerateRun(
            name=name,
            prompt_end="if x < 1 & y:",
            text=" <script>alert(1)</script>",
            prompt_tokens=600,
            pages_loaded=loaded,
            pages_computed=10 - loaded,
            pages_stored=9 - loaded,
            first_token_s=0.1,
            tokens_per_s=50.0,
            new_tokens=16,
        )

    return Generated(runs=(run("first", 0), run("again", 9), run("other", 9)))


def page_of(narrator, tmp_path, *outcomes, failed: str = "") -> str:
    runs = [StageRun(name=n, title=n.title(), about="", seconds=1.5, outcome=o) for n, o in outcomes]
    if failed:
        runs += [
            StageRun(name="late", title="Late", about="", failure=failed),
            StageRun(name="never", title="Never", about=""),
        ]
    with room(QUICK, narrator, keep=False) as demo:
        demo.results += [outcome for _, outcome in outcomes]
        demo.commands.typed.append(Typed("fs3 cp 'a <b>' c", demo.began + 61.5, 0.25, -9))
        write_page(tmp_path / "report.html", demo, runs, 75.0)
    assert [path.name for path in tmp_path.glob("report*")] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag, checked to be closed in order."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(narrator, tmp_path, resumed, outage, generated):
    text = page_of(narrator, tmp_path, ("outage", outage), ("crash", resumed), ("generation", generated))
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert [tag for tag, _ in tags.all].count("svg") == 4
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags.all}
    for tag, attributes in tags.all:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_plots_take_their_colours_and_font_from_the_page(narrator, tmp_path, resumed, outage, generated):
    text = page_of(narrator, tmp_path, ("outage", outage), ("crash", resumed), ("generation", generated))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "#0d0c0" not in drawn
    assert "DejaVu" not in drawn
    for name in ("ink", "muted", "grid", "blue", "orange", "green", "red", "sans"):
        assert f"var(--{name})" in drawn, name
        assert f"--{name}:" in text, name
    ids = re.findall(r'<clipPath id="([^"]+)"', drawn)
    assert len(ids) == len(set(ids))


def test_the_page_says_what_was_checked_seen_and_typed(narrator, tmp_path, resumed, outage, generated):
    text = page_of(narrator, tmp_path, ("outage", outage), ("crash", resumed), ("generation", generated))
    for outcome in (resumed, outage, generated):
        for check in outcome.checks:
            assert check.ok, check
            assert check.claim in text
    assert "fs3 cp &#39;a &lt;b&gt;&#39; c" in text
    assert "signal 9" in text
    assert "1:01.5" in text
    assert "&lt;script&gt;" in text
    assert "All 3 stages passed" in text
    assert "1 min 15 s" in text


def test_a_demo_that_fell_short_says_so(narrator, tmp_path):
    text = page_of(narrator, tmp_path, failed="no <room>")
    assert "0 of 2 stages passed" in text
    assert "no &lt;room&gt;" in text
    assert "not run" in text


def test_the_terminal_shows_every_stage(tmp_path, resumed):
    runs = [
        StageRun(name="crash", title="", about="", seconds=2.0, outcome=resumed),
        StageRun(name="late", title="", about="", failure="[no] room"),
        StageRun(name="never", title="", about=""),
    ]
    console = Console(file=io.StringIO(), width=160)
    print_report(console, runs, 75.0, tmp_path / "report.html")
    text = console.file.getvalue()
    for word in ("crash", "passed", "late", "fell short", "[no] room", "never", "not run", "report.html"):
        assert word in text, word


def broken(outcome) -> list[str]:
    return [check.claim for check in outcome.checks if not check.ok]


def test_a_resume_is_judged(resumed):
    assert broken(resumed) == []
    other = dataclasses.replace(resumed.second[0], loss=resumed.second[0].loss * (1 + 2**-52))
    assert broken(dataclasses.replace(resumed, second=(other, *resumed.second[1:]))) == [
        "losses of the steps that ran twice are bit-identical"
    ]
    assert broken(dataclasses.replace(resumed, second=resumed.second[:-1])) == ["the run was completed"]
    assert broken(dataclasses.replace(resumed, resumed_how="threads was 2, is 1")) == [
        "it resumed from its newest checkpoint"
    ]
    assert broken(dataclasses.replace(resumed, first=resumed.first[:3])) == [
        "losses of the steps that ran twice are bit-identical"
    ]


def test_an_outage_is_judged(outage):
    assert broken(outage) == []
    failed = dataclasses.replace(outage.sampled, failures=("reader: OSError: no",))
    assert len(broken(dataclasses.replace(outage, sampled=failed))) == 1
    assert len(broken(dataclasses.replace(outage, lost_writes=("000000: gone",)))) == 1
    assert len(broken(dataclasses.replace(outage, trainer_runs=False))) == 1
    assert len(broken(dataclasses.replace(outage, checkpoints_without=()))) == 1
    assert len(broken(dataclasses.replace(outage, status_serving=35))) == 1
    assert len(broken(dataclasses.replace(outage, seen=outage.seen[:1]))) == 1


def test_generation_is_judged(generated):
    assert broken(generated) == []
    cold, warm, other = generated.runs

    def with_(**changes):
        return broken(Generated(runs=(cold, dataclasses.replace(warm, **changes), other)))

    assert with_(text="else") == ["it writes the same text for the same prompt"]
    assert with_(pages_loaded=0, pages_computed=10) == ["the second loads what the first stored"]
    assert broken(Generated(runs=(cold, warm, dataclasses.replace(other, pages_loaded=0)))) == [
        "another prompt with the same prefix loads the pages of the prefix"
    ]
    assert broken(Generated(runs=(warm, warm, other)))
