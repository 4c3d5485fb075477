"""Two small plots as SVG, for which no library is needed."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 640, 300, 60, 20, 44, 20
STYLE = 'font-family="sans-serif" font-size="12" fill="#333"'


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {STYLE} {more}>{text}</text>'


def _write(path: Path, parts: list[str]) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    path.write_text("\n".join([head, ground, *parts, "</svg>"]) + "\n")


def line(path: Path, values: list[float], across: str, up: str) -> None:
    """Values from 0 to 1, one a step."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + high * (1 - tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    points = [
        (LEFT + wide * index / max(len(values) - 1, 1), TOP + high * (1 - value))
        for index, value in enumerate(values)
    ]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{joined}" fill="none" stroke="#1f6fb2" stroke-width="2"/>')
    parts.append(_text(LEFT, HEIGHT - 26, "1"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 26, str(len(values)), "end"))
    parts.append(_text(LEFT + wide / 2, HEIGHT - 10, across))
    parts.append(_text(16, TOP + high / 2, up, more=f'transform="rotate(-90 16 {TOP + high / 2})"'))
    _write(path, parts)


def bars(path: Path, values: dict[str, float], unit: str) -> None:
    """One horizontal bar a name."""
    name_wide = 110
    longest = max(values.values()) or 1
    step = (HEIGHT - TOP - BOTTOM) / len(values)
    parts = []
    for index, (name, value) in enumerate(values.items()):
        y, wide = TOP + index * step, (WIDTH - name_wide - 90) * value / longest
        parts.append(_text(name_wide - 8, y + step / 2 + 4, name, "end"))
        parts.append(
            f'<rect x="{name_wide}" y="{y + step * 0.15:.1f}" width="{wide:.1f}" '
            f'height="{step * 0.7:.1f}" fill="#1f6fb2"/>'
        )
        parts.append(_text(name_wide + wide + 6, y + step / 2 + 4, f"{value:.1f}", "start"))
    parts.append(_text(name_wide, HEIGHT - 12, unit, "start"))
    _write(path, parts)
