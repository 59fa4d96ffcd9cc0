"""What is left to evaluation while others work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.topology import parse_nodes
from tests.unit.report_fake import config_of
from w2sr.overlap import beside_pool


def replicas(
    tmp_path: Path, gpus: int, train: dict[str, Any], pool: dict[str, Any], stages: tuple[str, ...] = ("train", "evaluate")
) -> int | None:
    train = {"max_steps": 4, "use_gpu": True, "global_batch_size": 64, "micro_batch_size": 8, **train}
    evaluate = {"sampling": {"max_new_tokens": 64}, "pool": {"replicas": 8, "gpus_per_replica": 1, **pool}}
    config = config_of(tmp_path, train=train, evaluate=evaluate, overlap=True)
    found = beside_pool(config, parse_nodes(f"1x{gpus}x96"), stages)
    return None if found is None else found.replicas


@pytest.mark.parametrize(
    ("ranks", "gpus", "left"),
    [((8, 2), 8, None), ((4, 2), 4, None), ((8, 2), 4, None), ((4, 2), 8, 4), ((8, 2), 6, 2), ((8, 2), 9, 1), ((4, 4), 8, 4)],
)
def test_an_elastic_training_takes_what_it_can_have_before_evaluation_gets_any(
    ranks: tuple[int, int], gpus: int, left: int | None, tmp_path: Path
) -> None:
    assert replicas(tmp_path, gpus, {"num_ranks": ranks[0], "min_ranks": ranks[1]}, {}) == left


def test_fewer_than_the_least_replicas_are_none(tmp_path: Path) -> None:
    train = {"num_ranks": 4}
    assert replicas(tmp_path, 6, train, {"min_replicas": 2}) == 2
    assert replicas(tmp_path, 6, train, {"min_replicas": 3}) is None


def test_where_evaluation_shares_nothing_it_gets_the_least(tmp_path: Path) -> None:
    assert replicas(tmp_path, 1, {"num_ranks": 4}, {}, stages=("evaluate",)) == 1
