"""What ranks are fed: together every row of a step once, each as many micro-batches, within the budget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from w2sr.packing.pack import IGNORED
from w2sr.packing.rows import Row
from w2sr.training.config import TrainConfig
from w2sr.training.data import ROWS, save_rows
from w2sr.training.feed import Feed
from w2sr.training.spec import TrainSpec

MODES: dict[str, dict[str, Any]] = {
    "rows": {"packing": False, "global_batch_size": 12, "micro_batch_size": 1},
    "rows by tokens": {"packing": False, "global_batch_size": 13, "micro_batch_tokens": 70},
    "tokens": {"packing": False, "global_batch_tokens": 300, "micro_batch_tokens": 70},
    "tokens by rows": {"packing": False, "global_batch_tokens": 300, "micro_batch_size": 3},
    "packed": {"packing": True, "global_batch_size": 12, "micro_batch_size": 1},
    "packed by tokens": {"packing": True, "global_batch_tokens": 300, "micro_batch_tokens": 130},
    "few": {"packing": True, "global_batch_tokens": 64, "micro_batch_tokens": 64, "num_ranks": 1},
}


def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 90)
    return [Row(f"e{n}", "p", tuple(rng.integers(3, 90, length).tolist()), 1 + n % (length - 1)) for n, length in enumerate(lengths)]


def feeds(folder: Path, mode: dict[str, Any], num_ranks: int, attention: str = "sdpa") -> list[Feed]:
    path = folder / f"a{ROWS}"
    if not path.exists():
        save_rows(path, rows())
    train = TrainConfig.model_validate({"max_steps": 4, "max_length": 64, **mode})
    spec = TrainSpec("s", 5, train, "model", "digest", str(path), "output")
    model: Any = SimpleNamespace(pad_token_id=0, _attn_implementation=attention)
    return [Feed(spec, SimpleNamespace(data_rank=rank, data_size=num_ranks), model) for rank in range(num_ranks)]  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ranks_together_see_every_row_of_a_step_once(tmp_path: Path, mode: str, num_ranks: int) -> None:
    expected, idle = rows(), 0
    for number in range(4):
        ranks = feeds(tmp_path, MODES[mode], num_ranks)
        alone = feeds(tmp_path, MODES[mode], 1)[0].step(number)
        steps = [feed.step(number) for feed in ranks]
        assert all((step.rows == alone.rows).all() and (step.ends == alone.ends).all() for step in steps)
        dealt = [list(feed.micro_batches(step)) for feed, step in zip(ranks, steps)]
        assert len({len(batches) for batches in dealt}) == 1
        names = [name for batches in dealt for examples, _ in batches for name in examples]
        assert sorted(names) == sorted(expected[row].example_id for row in alone.rows)
        supervised = [batch.num_supervised for batches in dealt for _, batch in batches]
        assert sum(supervised) == alone.num_supervised == sum(expected[row].num_supervised for row in alone.rows)
        assert alone.num_tokens == sum(len(expected[row].ids) for row in alone.rows)
        idle += sum(not examples for batches in dealt for examples, _ in batches)
        for batches in dealt:
            for examples, batch in batches:
                size = MODES[mode].get("micro_batch_size")
                assert batch.input_ids.size <= (size * 64 if size else MODES[mode]["micro_batch_tokens"])
                assert (batch.position_ids is None) == (not MODES[mode]["packing"])
                assert examples or not batch.num_supervised
    assert (idle > 0) == (mode == "few" and num_ranks > 1)


def test_attention_row_by_row_gets_one_sequence(tmp_path: Path) -> None:
    for attention in ("w2sr_rows", "flash_attention_2"):
        (feed,) = feeds(tmp_path, MODES["packed"] | {"global_batch_size": 4, "micro_batch_size": 4, "num_ranks": 1}, 1, attention)
        ((examples, batch),) = feed.micro_batches(feed.step(0))
        assert batch.input_ids.shape == (1, feed.step(0).num_tokens)
        assert batch.position_ids is not None
        assert (batch.position_ids == 0).sum() == len(examples)  # nothing is padded


def test_rows_of_like_length_come_together_where_they_are_not_packed(tmp_path: Path) -> None:
    (feed,) = feeds(tmp_path, MODES["rows"] | {"global_batch_size": 90, "micro_batch_size": 9, "num_ranks": 1}, 1)
    batches = [batch for _, batch in feed.micro_batches(feed.step(0))]
    padded = sum(batch.input_ids.size for batch in batches)
    assert feed.step(0).num_tokens / padded > 0.9


@pytest.mark.parametrize("mode", MODES)
def test_the_selection_rows_are_seen_once_by_all_ranks_together(tmp_path: Path, mode: str) -> None:
    ranks = feeds(tmp_path, MODES[mode], 3)
    dealt = [list(feed.selection(ranks[0].rows)) for feed in ranks]
    assert len({len(batches) for batches in dealt}) == 1
    labels = np.concatenate([batch.labels.ravel() for batches in dealt for batch in batches])
    assert sorted(labels[labels != IGNORED]) == sorted(token for row in rows() for token in row.ids[row.num_prefix :])
