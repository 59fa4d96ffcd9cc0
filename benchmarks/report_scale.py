"""The report of a run with many traces: CPU seconds and peak memory of the stage, size of the page, and seconds until it can be used.

    python -m benchmarks.report_scale 50000 150000

Writes made-up runs (one teacher with three traces of each prompt, about 2,900 characters a trace, four students, 30 held-out problems)
under --scratch. Each report is made in a process of its own and then opened in headless Chromium, if there is one.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chromium import Browser
from tests.unit.report_fake import fake_run
from tests.unit.trace_fake import add_training
from w2sr.run import open_folder
from w2sr.stages import report

SAMPLES = 3
TEXT = "So 3 plus 4 is 7 and wait, maybe that is wrong; " * 60
READY = "((document.getElementById('count') || {}).textContent || '')"


def build(folder: Path, num_traces: int) -> None:
    """Write a run without its report."""
    run = fake_run(folder, question="What is 3 + 4?", train={"max_steps": 40, "seeds": [0]}, prompts={"num_test": 30})
    add_training(run, num_traces // SAMPLES, SAMPLES, lambda number: f"{TEXT} {number}")


def measure(folder: Path) -> None:
    """Make the report and print what it took as JSON."""
    began, cpu = time.monotonic(), time.process_time()
    report.run(open_folder(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - began, "peak_mib": peak}))


def open_page(path: Path) -> tuple[float, float, str]:
    """Return the seconds until the page can be used and until a search is done, and what the page says that it found."""
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.open("about:blank", 1200).close()  # the browser's own start is not the page's
        began = time.monotonic()
        page = browser.open(path.as_uri(), 1200)
        page.wait_until(f"{READY}.length > 0")
        opened = time.monotonic() - began
        before = page.evaluate(READY)
        began = time.monotonic()
        page.evaluate(
            "(() => { const f = document.getElementById('find'); f.value = 'so 3 plus'; f.dispatchEvent(new Event('input')); })()"
        )
        page.wait_until(f"{READY} !== {before!r}")
        searched, found = time.monotonic() - began, page.evaluate(READY)
        assert page.complaints == [], page.complaints
        return opened, searched, found


def main() -> None:
    """Run every size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", type=int, default=[50_000])
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--one", choices=["build", "measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one == "build":
        return build(arguments.scratch, arguments.sizes[0])
    if arguments.one == "measure":
        return measure(arguments.scratch)
    print("| traces | CPU s | wall s | peak RSS, MiB | report.html, MB | opens in, s | search, s | found |")
    print("|---:|---:|---:|---:|---:|---:|---:|---|")
    for size in arguments.sizes:
        folder = Path(tempfile.mkdtemp(dir=arguments.scratch)) / "run"
        command = [sys.executable, __file__, str(size), "--scratch", str(folder), "--one"]
        subprocess.run([*command, "build"], check=True)
        done = subprocess.run([*command, "measure"], check=True, capture_output=True, text=True)
        took = json.loads(done.stdout)
        page = folder / "report.html"
        browsed = "– | – | no chromium"
        if shutil.which("chromium") or shutil.which("chromium-browser"):
            opened, searched, found = open_page(page)
            browsed = f"{opened:.1f} | {searched:.1f} | {found}"
        figures = f"{took['cpu_s']:.1f} | {took['wall_s']:.1f} | {took['peak_mib']:,.0f} | {page.stat().st_size / 1e6:.1f}"
        print(f"| {size:,} | {figures} | {browsed} |", flush=True)
        shutil.rmtree(folder.parent)
    return None


if __name__ == "__main__":
    main()
