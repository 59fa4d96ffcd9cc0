"""Rows files of waves: a wave has the same rows whether it was cut out of the whole arm or came by itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tiny import make_tiny_model
from w2sr.errors import UserError
from w2sr.prompting import PromptStyle
from w2sr.records import Example, Prompt
from w2sr.tables import write_table
from w2sr.training.config import TrainConfig
from w2sr.training.data import WAVES, load_rows, read_waves
from w2sr.training.prepare import RowsMaker

NUM_WAVES = 3


def examples() -> list[Example]:
    """Traces of two teachers in the order of a pool: those of the last wave are too long, and prompts have different answers."""
    texts = [f"x = {n} \\boxed{{{n % 2}}}" if n < 8 else "x" * 90 for n in range(12)]
    return [
        Example(f"{who}{n}", f"p{n}", f"{n}+1", texts[(n + far) % 8 if n < 8 else n], who, None, None)
        for who, far in (("a", 0), ("b", 3))
        for n in range(12)
    ]


def maker(folder: Path, some: list[Example]) -> RowsMaker:
    loss = {"agreement_power": 1.0, "teacher_weights": {"a": 0.5}}
    train = TrainConfig.model_validate(
        {"max_steps": 1, "num_ranks": 1, "max_length": 64, "global_batch_size": 4, "micro_batch_size": 2, "packing": False, "loss": loss}
    )
    config: Any = SimpleNamespace(train=train, curate=SimpleNamespace(waves=NUM_WAVES), student=SimpleNamespace(style=PromptStyle()))
    run: Any = SimpleNamespace(config=config, stage=lambda *names: folder.joinpath(*names))
    prompts = [Prompt(f"p{n}", "train", f"{n}+1", str(n + 1), None, "test", "{}") for n in range(12)]
    write_table(folder / "prompts" / "train.parquet", prompts, Prompt)
    write_table(folder / "curate" / "all.parquet", some, Example)
    return RowsMaker(run, make_tiny_model(folder / "base"))


def test_a_wave_has_the_rows_it_has_in_the_whole_arm(tmp_path: Path) -> None:
    rows = maker(tmp_path, examples())
    index, facts = rows.of_arm("all")
    assert index.name.endswith(WAVES)
    waves = read_waves(index)
    assert (waves.of, waves.digests) == (NUM_WAVES, tuple(each.digest for each in facts))
    assert [(each.num_rows, len(each.too_long)) for each in facts] == [(8, 0), (8, 0), (0, 8)]
    store = load_rows(index)
    expected = [f"{who}{n}" for first in (0, 4) for who in "ab" for n in range(first, first + 4)]
    assert store.example_ids(np.arange(len(store))) == expected
    assert len(set(store.weights.tolist())) > 1
    before = maker(tmp_path / "before", [])
    for wave in range(NUM_WAVES):
        table = tmp_path / f"wave{wave}.parquet"
        write_table(table, [each for each in examples() if int(each.prompt_id[1:]) // 4 == wave], Example)
        path, alone = before.of_wave("all", table, wave)
        assert alone == facts[wave]
        assert path.name == waves.rows[wave].name
        assert not path.samefile(waves.rows[wave])
        assert rows.of_wave("all", table, wave)[0].samefile(waves.rows[wave]), "it is found again"
    assert rows.of_arm("all") == (index, facts)


def test_an_arm_none_of_whose_waves_has_a_row_is_refused(tmp_path: Path) -> None:
    rows = maker(tmp_path, [each for each in examples() if len(each.text) > 64])
    with pytest.raises(UserError, match=r"all 8 rows are longer than train.max_length=64 tokens; raise it"):
        rows.of_arm("all")
    write_table(tmp_path / "curate" / "all.parquet", [], Example)
    with pytest.raises(UserError, match=r"there is no example to train on; look at curate/funnel.json"):
        rows.of_arm("all")
    stray = [Example(f"e{n}", f"p{n}", "1+1", "½", "a", None, None) for n in range(2)]
    write_table(tmp_path / "curate" / "all.parquet", stray + examples(), Example)
    with pytest.raises(UserError, match=r"2 of 26 rows fail the gate. The first: example e0"):
        rows.of_arm("all")
