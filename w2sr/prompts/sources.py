"""All candidates of a configured source, and the digests of the files they were read from."""

from __future__ import annotations

from pathlib import Path

from w2sr.artifacts import file_digest
from w2sr.prompts.config import FileSource, HubSource, PromptsConfig
from w2sr.prompts.files import read_rows
from w2sr.prompts.gym import draw_candidates
from w2sr.prompts.hub import read_hub_rows
from w2sr.prompts.rows import Candidate, candidates_of


def load_candidates(config: PromptsConfig) -> tuple[list[Candidate], list[Candidate] | None]:
    """Return the candidates for training and selection, and those for the test; None for the latter when it is split off from the former.

    Raises UserError for whatever is wrong with the source; the message says where.
    """
    source = config.source
    if isinstance(source, FileSource):
        main = list(candidates_of(read_rows(Path(source.path)), source.fields, f"file:{Path(source.path).name}"))
        if source.test_path is None:
            return main, None
        return main, list(candidates_of(read_rows(Path(source.test_path)), source.fields, f"file:{Path(source.test_path).name}"))
    if isinstance(source, HubSource):
        main = _hub_candidates(source, source.split)
        if source.test_split is None:
            return main, None
        return main, _hub_candidates(source, source.test_split)
    return draw_candidates(source, config.num_train + config.num_selection + config.num_test), None


def _hub_candidates(source: HubSource, split: str) -> list[Candidate]:
    columns = {column for column in vars(source.fields).values() if column is not None}
    rows = read_hub_rows(source, split, columns, "prompts.source")
    return list(candidates_of(rows, source.fields, f"hub:{source.path}:{split}"))


def source_digests(config: PromptsConfig) -> dict[str, str]:
    """Return the digests of the source's files, so that a changed file is noticed.

    A missing file is left for `load_candidates` to report.
    """
    if not isinstance(config.source, FileSource):
        return {}
    paths = [path for path in (config.source.path, config.source.test_path) if path is not None]
    return {f"file {path}": file_digest(Path(path)) for path in paths if Path(path).is_file()}
