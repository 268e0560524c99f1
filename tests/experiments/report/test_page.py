"""The page is one well-formed file that loads nothing, escapes what it quotes, and is honest about what it has."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ra3gym.abstractions.latents.colors import COLORS
from ra3gym.errors import RunFolderError
from ra3gym.experiments.report.comparison import StudyResults
from ra3gym.experiments.report.latent_legend import LatentInfo
from ra3gym.experiments.report.page import write_report
from ra3gym.experiments.report.results import ProgramSample, UnitResult, load_result, load_results, save_result
from ra3gym.experiments.report.verdict import verdict
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]
VOID = {"meta", "path", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects text and attributes, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def drawn(run: RunFolder, **options: Any) -> Path:
    """Draw the page of what a run holds."""
    results = StudyResults(load_results(run), [ARMS[name] for name in ARMS])
    return write_report(run, results, verdict(results), **options)


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_shows_every_part_of_a_study(make_run: MakeRun) -> None:
    run = make_run()
    path = drawn(run)
    assert path == run.path / "report.html"
    page = read(path)
    assert "RA3 is better than the strongest other arm, Pseudo-documentation" in page.text
    assert "3 seeds the intervals rest on" in page.text
    arms = {result.arm for result in load_results(run)}
    assert len(arms) == 9
    assert all(ARMS[arm].title in page.text for arm in arms)
    assert len(page.with_class("chart")) == 2
    assert len(page.with_class("forest")) == 3
    assert len(page.with_class("program")) == 6
    assert {"✓ passed", "✗ failed"} <= {text.strip() for text in page.texts}
    assert "cumsum" in page.text
    assert "threshold 60%" in page.text
    assert run.manifest["versions"]["torch"] in page.text
    assert "switch_cost" in page.text
    assert "has not finished" not in page.text


def test_latents_have_the_words_and_colors_of_the_traces_page(make_run: MakeRun) -> None:
    info = LatentInfo(17, ("total", "running", "sum", "add"), 1, 0.5, 1, 1.0, None, (), "#123456", "solid")
    run = make_run()
    segments = (("z17", "x = 1\n"), ("z10", "y = 2\n"), (None, "z = 3\n"))
    for result in load_results(run):
        samples = [ProgramSample("def f():\n", segments, passed=True, task_id="t")]
        save_result(run, dataclasses.replace(result, samples=samples))
    page = read(drawn(run, legends={"ra3": {17: info}}))
    assert "z17 total running sum" in page.text
    assert "z17 total running sum add" not in page.text
    styles = [attrs.get("style") for attrs in page.with_class("segment")]
    assert styles.count("--c:#123456") == 1, "in RA3's program alone"
    assert styles.count(f"--c:{COLORS[17 % 8]}") == 2
    assert styles.count(f"--c:{COLORS[10 % 8]}") == 3
    assert styles.count(None) == 3


def test_every_bar_dot_and_curve_says_its_value(make_run: MakeRun) -> None:
    run = make_run()
    page = read(drawn(run))
    bars, dots = page.with_class("bar"), page.with_class("seed")
    assert len(dots) == 3 * len(bars)
    assert all(re.search(r": [\d.]+% \(95% interval [\d.]+–[\d.]+\); seeds 10: ", str(bar["title"])) for bar in bars)
    assert all(re.search(r", seed 1[012]: [\d.]+%$", str(dot["title"])) for dot in dots)
    assert len(page.with_class("one")) == 3 * len(page.with_class("mean"))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', drawn(run).read_text(), re.DOTALL)
    tables = json.loads(data)
    assert ["ra3", 10, "pass@1", load_result(run, 10, "ra3").scores["pass@1"]] in tables["scores"]
    assert len({(arm, seed, curve) for arm, seed, curve, _, _ in tables["curves"][1:]}) == 9 * 3 * 3


def test_nothing_is_cut_off_and_no_label_lies_on_a_curve(make_run: MakeRun) -> None:
    html = drawn(make_run()).read_text()
    assert "text-overflow" not in html
    assert re.search(r'<p class="mark-text"><i></i>threshold 60%</p>\s*<div class="chart">', html)
    assert "–: not measured" in read(drawn(make_run())).text


def test_the_page_loads_nothing(make_run: MakeRun) -> None:
    html = drawn(make_run(), trace_pages=[Path("traces/seed-10.html")]).read_text()
    assert all(not attrs.keys() & {"src", "srcset", "action"} for _, attrs in Page(html).tags)
    assert [attrs["href"] for tag, attrs in Page(html).tags if "href" in attrs] == ["traces/seed-10.html"]
    assert not any(word in html for word in ("http:", "https:", "url(", "@import", "fetch(", "XMLHttpRequest"))


def test_the_users_text_is_quoted_not_run(make_run: MakeRun) -> None:
    run = make_run()
    evil = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"
    for seed in (10, 11, 12):
        sample = ProgramSample(evil, ((evil, evil),), passed=True, task_id=evil)
        curves = {"rlvr_reward": [(0.0, 0.1), (9.0, 0.3)]}
        save_result(run, UnitResult(seed, evil, {"pass@1": 0.99, "pass@1_after": 0.99}, curves, [sample]))
        for arm in ("ntp", "ra3"):
            save_result(run, UnitResult(seed, arm, {"pass@1": 0.1, "pass@1_after": 0.1}, curves, [sample]))
    page = read(drawn(run))
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == ["script", "script"]
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert evil in page.text
    assert "RA3 is worse than the strongest other arm" in page.text


def test_a_run_that_never_reached_the_threshold_says_never(make_run: MakeRun) -> None:
    assert "never" in read(drawn(make_run())).text


def test_one_seed_shows_no_interval_and_claims_nothing(make_run: MakeRun) -> None:
    page = read(drawn(make_run(seeds=(10,))))
    assert "One seed, so no verdict" in page.text
    assert page.with_class("whisker") == []
    assert page.with_class("range") == []
    assert page.with_class("better") == []
    assert "95%" not in page.text
    assert "95%" in read(drawn(make_run(seeds=(10, 11, 12)))).text


def test_a_study_cut_short_shows_what_it_has(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(seeds=(10,), arms=())
    with pytest.raises(RunFolderError, match="no finished result yet"):
        drawn(run)
    (run.path / "summary.json").unlink()
    save_result(run, UnitResult(10, "ntp", {"pass@1": 0.1}))
    page = read(drawn(run))
    assert "has not finished" in page.text
    assert page.with_class("chart") == []
    assert page.with_class("forest") == []


def test_a_study_without_rlvr_compares_mid_training(make_run: MakeRun) -> None:
    run = make_run()
    for result in load_results(run):
        save_result(run, UnitResult(result.seed, result.arm, {"pass@1": result.scores["pass@1"]}))
    page = read(drawn(run))
    assert "points of pass@1 after mid-training" in page.text
    assert "after RLVR" not in page.text


def test_drawing_again_gives_the_same_page(make_run: MakeRun) -> None:
    run = make_run()
    first = drawn(run).read_bytes()
    assert drawn(RunFolder.open(run.path)).read_bytes() == first
