"""What the quickstart must show, checked on a finished run: `python tests/quickstart_assertions.py runs/quickstart`.

Accuracies are counted again from the verdict tables and compared with what the report says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

LIMIT_S = 360


def accuracy(folder: Path) -> float:
    """Return the share of samples judged correct, straight from the tables."""
    verdicts = pq.read_table(folder / "verdicts.parquet", columns=["verdict"]).column("verdict").to_pylist()
    samples = sum(pq.ParquetFile(part).metadata.num_rows for part in folder.glob("part-*.parquet"))
    return verdicts.count("correct") / samples


def check(run: Path) -> None:
    """Raise AssertionError for the first thing that does not hold."""
    report = json.loads((run / "report.json").read_text())
    rows = {row["key"]: row for row in report["comparison"]["rows"]}
    for key, row in rows.items():
        counted = [accuracy(run / "evaluate" / "test" / label) for label in row["labels"]]
        reported = row["figures"]["avg"]["value"]
        assert abs(sum(counted) / len(counted) - reported) < 1e-9, f"{key}: the report says {reported}, the tables {counted}"
    teacher = rows["teacher-weak"]["figures"]["avg"]["value"]
    assert 0.3 <= teacher <= 0.7, f"the teacher solves {teacher:.2f}"
    for arm in ("all", "correct"):
        for other in ("teacher", "base"):
            difference = rows[arm]["versus"][other]
            assert difference["low"] > 0, f"{arm} against {other}: {difference}"
        for ratio in ("rgr_vs_student_base", "pgr_vs_teacher"):
            assert ratio in rows[arm], ratio
    for stage in ("generate/weak", *(f"train/{arm}-seed0" for arm in ("all", "correct", "incorrect", "gold"))):
        assert list((run / stage).glob("events.out.tfevents*")), f"{stage} left no TensorBoard events"
    seconds = sum(json.loads(path.read_text())["seconds"] for path in run.rglob("manifest.json"))
    assert seconds <= LIMIT_S, f"the stages took {seconds:.0f} s, more than {LIMIT_S}"
    print(f"quickstart assertions hold: teacher {teacher:.3f}, stages {seconds:.0f} s")
    for key, row in rows.items():
        estimate = row["figures"]["avg"]
        print(f"  {key:<14} {estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]")


if __name__ == "__main__":
    check(Path(sys.argv[1]))
