"""A plan as a table for a person, at most 100 columns wide, and as plain data for machines."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from w2sr.planning.assumptions import GIB
from w2sr.planning.plan import Item, Plan
from w2sr.planning.search import Option
from w2sr.planning.training_memory import Memory

WIDTH = 100


def render(plan: Plan) -> str:
    """Return the text that `w2sr plan` prints."""
    lines = [plan.title, "", *_table(plan), ""]
    for item in plan.items:
        lines += _details(item)
    lines += ["", *_totals(plan), "", *_wrapped(_assumed(plan), "")]
    lines += [line for item in plan.items if not item.memory.fits for line in ["", *_wrapped(refusal(item), "")]]
    return "\n".join(lines)


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the same as plain data: sizes in bytes, times in seconds."""
    return {
        "title": plan.title,
        "fits": plan.fits,
        "items": [_item_as_json(item) for item in plan.items],
        "device_seconds": {kind: _device_seconds(plan, kind == "gpu") for kind in ("gpu", "cpu")},
        "seconds": sum(item.seconds for item in plan.items),
        "disk": plan.disk,
        "elsewhere": plan.elsewhere,
        "assumed": dataclasses.asdict(plan.assumed),
    }


def refusal(item: Item) -> str:
    """Return what does not fit, by how much, and what would."""
    memory = item.memory
    what = f"{item.stage}: {item.name} ({item.model}) does not fit: {_needs(memory)} a {_device(item)}"
    if memory.host_has is not None and memory.host > memory.host_has:
        what += f", and {_gib(memory.host)} of the {_gib(memory.host_has)} GiB of host memory that are its share"
    return f"{what}. " + (
        f"It would fit with {item.remedy}" if item.remedy else "Nothing that plan knows makes it fit: take a smaller model"
    )


def _item_as_json(item: Item) -> dict[str, Any]:
    named = {key: value for key, value in vars(item).items() if key not in ("memory", "layout", "instead", "fastest")}
    best = None if item.fastest is None else {**_option_as_json(item.fastest[0]), "tokens_per_s": item.fastest[1]}
    return {
        **named,
        "memory": _memory_as_json(item.memory),
        "layout": None if item.layout is None else dataclasses.asdict(item.layout),
        "instead": [_option_as_json(option) for option in item.instead],
        "fastest": best,
    }


def _option_as_json(option: Option) -> dict[str, Any]:
    return {"changes": option.changes, "memory": _memory_as_json(option.memory)}


def _memory_as_json(memory: Memory) -> dict[str, Any]:
    return {**dataclasses.asdict(memory), "needs": memory.needs, "allocated": memory.allocated, "fits": memory.fits}


def _table(plan: Plan) -> list[str]:
    head = ["stage", "what", "model", "size", "devices", "GiB of each", "", "time"]
    rows = [
        [
            item.stage,
            _short(item.name, 22),
            _short(item.model.rstrip("/").rsplit("/", 1)[-1], 18),
            _count(item.num_parameters),
            f"{item.num_devices:g} {'GPU' if item.on_gpu else 'CPU'}",
            f"{_gib(item.memory.needs)} of {_gib(item.memory.has)}",
            "fits" if item.memory.fits else "TOO BIG",
            _time(item.seconds),
        ]
        for item in plan.items
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in [head, *rows]]


def _details(item: Item) -> list[str]:
    memory = item.memory
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in memory.parts.items())
    lines = _wrapped(f"{item.stage} {item.name}: {parts} GiB", "  ")
    if item.layout is not None:
        lines += _wrapped(f"as configured: {item.layout.describe()}", "  ", 1)
    lines += [line for note in item.notes for line in _wrapped(note, "  ", 1)]
    if memory.host or memory.nvme:
        lines += _wrapped(f"beside it: {_gib(memory.host)} GiB of host memory, {_gib(memory.nvme)} GiB of NVMe a device", "  ", 1)
    if item.instead:
        options = ", ".join(
            f"{each.describe()} {_gib(each.memory.needs)}{'' if each.memory.fits else ' (too big)'}" for each in item.instead
        )
        lines += _wrapped(f"instead: {options} GiB", "  ", 1)
    if item.fastest is not None:
        option, rate = item.fastest
        what = option.describe() or "this one"
        text = f"fastest that fits on {item.num_devices:g} GPUs: {what}, {rate:,.0f} tokens/s a GPU by the same assumptions"
        lines += _wrapped(text, "  ", 1)
    return lines


def _totals(plan: Plan) -> list[str]:
    hours = [f"{_device_seconds(plan, gpu) / 3600:,.1f} {name}-hours" for gpu, name in ((True, "GPU"), (False, "CPU")) if _has(plan, gpu)]
    disk = ", ".join(f"{name} {_size(size)}" for name, size in plan.disk.items())
    return [
        f"time: {_time(sum(item.seconds for item in plan.items))} if stages follow each other; {', '.join(hours)}",
        *_wrapped(f"disk: {_size(sum(plan.disk.values()))} at most: {disk}", ""),
        *([f"elsewhere: {', '.join(plan.elsewhere)}"] if plan.elsewhere else []),
    ]


def _assumed(plan: Plan) -> str:
    rates = ", ".join(f"{item.name} {item.rate:,.0f} ({item.basis})" for item in plan.items)
    assumed = plan.assumed
    text = (
        f"tokens/s of a replica or rank: {rates}. Prompts have {assumed.prompt_tokens:g} tokens, answers {assumed.answer_share:g} of their "
        f"limit where nothing is measured yet; fragmentation takes {assumed.margin:.0%}."
    )
    if _has(plan, True):
        text += f" GPU: {assumed.tflops:g} TFLOPS, {assumed.efficiency:.0%} of it while it computes. docs/plan.md says how to change these."
    return text


def _has(plan: Plan, gpu: bool) -> bool:
    return any(item.on_gpu == gpu for item in plan.items)


def _device_seconds(plan: Plan, gpu: bool) -> float:
    return sum(item.seconds * item.num_devices for item in plan.items if item.on_gpu == gpu)


def _needs(memory: Memory) -> str:
    return f"{_gib(memory.needs)} of {_gib(memory.has)} GiB"


def _device(item: Item) -> str:
    return "GPU" if item.on_gpu else "CPU process"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}" if size < 10 * GIB else f"{size / GIB:,.1f}"


def _size(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.0f} kB"


def _count(number: float) -> str:
    return f"{number / 1e9:,.1f} B" if number >= 1e9 else f"{number / 1e6:,.1f} M"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _wrapped(text: str, indent: str, level: int = 0) -> list[str]:
    first = indent * level
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=first + "  ", break_on_hyphens=False)
