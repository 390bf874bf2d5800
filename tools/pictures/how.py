"""How an exact sparse code is computed without the matrix of all scores: five steps, left to right."""

from __future__ import annotations

from drawing import Drawing, Theme

WIDTH, HEIGHT = 830, 316
STEP, LEFT, PICTURE = 162, 16, 74  # a step's width, the margin, the height at which its picture begins
STEPS = (
    ("screen", "a fast product, tile", "by tile, puts each", "score in an interval"),
    ("certify", "a proven bound: none", "below the line is", "among the k largest"),
    ("rescore", "the few left, in", "float32 and in one", "order of summation"),
    ("select", "the k largest; equal", "scores go to the", "lower latent"),
    ("decode", "k rows of the decoder,", "gathered and summed", "into the output"),
)
# (lower end, upper end) of the intervals of nine latents, in pixels above the foot of the picture.
INTERVALS = ((8, 22), (46, 62), (20, 34), (60, 78), (3, 15), (38, 53), (24, 40), (66, 82), (12, 27))
WANTED = 3


def how(theme: Theme) -> str:
    """The picture; what is drawn in the second to fourth step follows from INTERVALS."""
    drawing = Drawing(WIDTH, HEIGHT, theme)
    for place, (name, *caption) in enumerate(STEPS):
        x = LEFT + place * STEP
        drawing.text(x, 32, f"{place + 1}", size=17, colour=theme.orange, bold=True)
        drawing.text(x + 16, 32, name, size=17, bold=True)
        for line, words in enumerate(caption):
            drawing.text(x, PICTURE + 122 + 17 * line, words, size=12, colour=theme.muted)
        if place:
            _arrow(drawing, x - 30, PICTURE + 44)
    for place, draw in enumerate((_screen, _certify, _rescore, _select, _decode)):
        draw(drawing, LEFT + place * STEP, PICTURE)
    _fallback(drawing)
    return drawing.render(
        "screen, certify, rescore, select, decode",
        "; ".join(f"{name}: {' '.join(caption)}" for name, *caption in STEPS),
    )


def survivors() -> list[int]:
    """Latents whose interval reaches the WANTED-th largest lower end."""
    return [latent for latent, (_, high) in enumerate(INTERVALS) if high >= _line()]


def selected() -> list[int]:
    """The survivors with the largest scores, largest first; a score lies in the middle of its interval."""
    return sorted(survivors(), key=lambda latent: -sum(INTERVALS[latent]))[:WANTED]


def _line() -> int:
    return sorted((low for low, _ in INTERVALS), reverse=True)[WANTED - 1]


def _screen(drawing: Drawing, x: float, y: float) -> None:
    """Tokens times latents in tiles, of which one is at work and none is kept."""
    theme = drawing.theme
    for row in range(4):
        for column in range(6):
            now = (row, column) == (1, 3)
            fill = theme.blue if now else theme.faint
            drawing.rectangle(x + 19 * column, y + 22 * row, 17, 20, fill, radius=2, stroke=theme.line)
    drawing.text(x, y - 10, "tokens x latents", size=11, colour=theme.muted)


def _certify(drawing: Drawing, x: float, y: float) -> None:
    theme, foot = drawing.theme, y + 88
    kept = survivors()
    drawing.line(x, foot, x + 118, foot, theme.line)
    for latent, (low, high) in enumerate(INTERVALS):
        colour = theme.blue if latent in kept else theme.grey
        middle = x + 8 + 13 * latent
        drawing.line(middle, foot - high, middle, foot - low, colour, width=5)
    drawing.line(x - 4, foot - _line(), x + 122, foot - _line(), theme.orange, width=1.5, dashed=True)


def _rescore(drawing: Drawing, x: float, y: float) -> None:
    theme, foot = drawing.theme, y + 88
    drawing.line(x, foot, x + 118, foot, theme.line)
    for latent in survivors():
        low, high = INTERVALS[latent]
        middle = x + 8 + 13 * latent
        drawing.line(middle, foot - high, middle, foot - low, theme.grey, width=1.5)
        drawing.circle(middle, foot - (low + high) / 2, 4.5, theme.blue)


def _select(drawing: Drawing, x: float, y: float) -> None:
    theme, foot = drawing.theme, y + 88
    drawing.line(x, foot, x + 118, foot, theme.line)
    for place, latent in enumerate(selected()):
        score = sum(INTERVALS[latent]) / 2
        drawing.rectangle(x + 10 + 36 * place, foot - score, 24, score, theme.orange, radius=2)
        drawing.text(x + 22 + 36 * place, foot + 14, str(latent), size=11, colour=theme.muted, anchor="middle")


def _decode(drawing: Drawing, x: float, y: float) -> None:
    """Rows of the decoder; the selected ones go into one output row."""
    theme = drawing.theme
    for latent in range(len(INTERVALS)):
        fill = theme.orange if latent in selected() else theme.faint
        drawing.rectangle(x, y + 10 * latent - 2, 74, 8, fill, radius=2, stroke=theme.line)
        if latent in selected():
            start, end = y + 10 * latent + 2, y + 42
            bend = f"C {x + 92:.0f} {start:.0f} {x + 88:.0f} {end:.0f} {x + 100:.0f} {end:.0f}"
            drawing.path(f"M {x + 76:.0f} {start:.0f} {bend}", theme.orange)
    drawing.rectangle(x + 102, y + 2, 10, 80, theme.orange, radius=2)
    drawing.text(x + 118, y + 46, "x̂", size=14)


def _arrow(drawing: Drawing, x: float, y: float) -> None:
    colour = drawing.theme.muted
    drawing.path(f"M {x:.0f} {y:.0f} h 14 m -5 -4 l 5 4 l -5 4", colour)


def _fallback(drawing: Drawing) -> None:
    """Below: what happens to a row that cannot be certified, and what is never held."""
    theme = drawing.theme
    y = PICTURE + 180
    drawing.line(LEFT, y, WIDTH - LEFT, y, theme.line)
    drawing.text(LEFT, y + 26, "A row that cannot be certified is scored whole: the same answer, later.", size=14)
    drawing.text(
        LEFT, y + 48, "No step holds a matrix of tokens x latents, forward or backward.", size=14, colour=theme.muted
    )
