"""One trace as a person wants to read it."""

from __future__ import annotations

from pathlib import Path

from w2sr.diagnosis.lookup import find_trace, prompt_of
from w2sr.grading.extract import extract_answers
from w2sr.textual.loops import is_loop
from w2sr.textual.scripts import stray_scripts


def render_trace(run_folder: Path, trace_id: str) -> str:
    """Return a trace, its prompt and what is to be said of it, as text. Raises UserError when there is no such trace."""
    found = find_trace(run_folder, trace_id)
    trace, prompt = found.trace, prompt_of(run_folder, found)
    answers = extract_answers(trace.text)
    strays = stray_scripts(trace.text, prompt.question)
    lines = [
        f"trace {trace.trace_id} in {found.stage}, sample {trace.sample_index} of prompt {trace.prompt_id}, seed {trace.seed}",
        f"{trace.engine} {trace.engine_version}, model {(trace.model or trace.model_digest)[:40]}, finish_reason {trace.finish_reason}, "
        f"{trace.num_prompt_tokens} + {trace.num_tokens} tokens",
        f"error: {trace.error}" if trace.error else f"final answer: {answers.last if answers else 'none'}; reference: {prompt.answer}",
        *(["a loop"] if is_loop(trace.text) else []),
        *([f"stray letters: {', '.join(f'{script} {number}' for script, number in strays.items())}"] if strays else []),
    ]
    return "\n".join([*lines, "", "--- question", prompt.question, "", "--- text", trace.text])
