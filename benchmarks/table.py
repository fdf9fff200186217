"""The benchmark's entries as a Markdown table."""

from typing import Any

HEADER = ["case", "ours, episodes/s", "TRL 1.12", "times as fast", "memory MB", "TRL 1.12", "share"]
HEADER += ["efficiency: generate", "score", "update"]


def to_markdown(entries: list[dict[str, Any]]) -> str:
    """One line per case; a dash where the other side was not run."""
    lines = [HEADER, ["---"] * len(HEADER)]
    for entry in entries:
        ours, peer = entry["ours"], entry.get("peer")
        theirs = ["–"] * 4
        if peer:
            theirs = [f"{peer['episodes_per_s']:.2f}", f"{entry['speedup']:.2f}"]
            theirs += [f"{peer['peak_memory_mb']:.0f}", f"{entry['memory_ratio']:.2f}"]
        efficiency = [f"{entry['efficiency'][p]:.2f}" for p in ("generate", "score", "update")]
        memory = f"{ours['peak_memory_mb']:.0f}"
        speed = f"{ours['episodes_per_s']:.2f}"
        lines.append([entry["name"], speed, *theirs[:2], memory, *theirs[2:], *efficiency])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
