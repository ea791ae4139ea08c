"""Independent references in float64 numpy: what any code book of 2^bits values can reach, and the best uniform one."""

import numpy as np

FAMILIES = ("gaussian", "laplace", "student_t4")


def draw(family: str, rows: int, in_features: int, seed: int = 0) -> np.ndarray:
    """Rows of one of FAMILIES at the size of a weight, as float32 [rows, in_features]."""
    generator = np.random.default_rng([seed, FAMILIES.index(family)])
    size = (rows, in_features)
    values = {
        "gaussian": lambda: generator.standard_normal(size),
        "laplace": lambda: generator.laplace(size=size),
        "student_t4": lambda: generator.standard_t(4, size=size),
    }[family]()
    return (0.03 * values).astype(np.float32)


def sqnr_db(exact, approximate) -> np.ndarray:
    """SQNR of every row."""
    exact, approximate = np.asarray(exact, np.float64), np.asarray(approximate, np.float64)
    noise = np.square(exact - approximate).sum(-1)
    return 10 * np.log10(np.square(exact).sum(-1) / np.maximum(noise, 1e-300))


def nearest(row: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replace every entry by the nearest of `values`."""
    values = np.sort(values)
    return values[np.searchsorted((values[1:] + values[:-1]) / 2, row)]


def lloyd_max(row: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    """Return the row on the best code book of 2^bits values that Lloyd's iteration finds from eight starts."""
    row = row.astype(np.float64)
    ordered = np.sort(row)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    books = [_iterate(ordered, sums, start) for start in _starts(ordered, 2**bits, np.random.default_rng(seed))]
    return min((nearest(row, book) for book in books), key=lambda found: np.square(row - found).sum())


def _starts(ordered: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Quantiles, uniform and power-law books, and a random one."""
    middle = (np.arange(size) + 0.5) / size
    line = np.linspace(-1, 1, size)
    rms = np.sqrt(np.square(ordered).mean())
    largest = np.abs(ordered).max()
    starts = [np.quantile(ordered, middle)]
    starts += [line * rms * width for width in (2.0, 3.0, 4.5)]
    starts += [np.sign(line) * np.abs(line) ** power * largest for power in (1.0, 2.0, 3.0)]
    starts.append(np.sort(generator.choice(ordered, size, replace=False)))
    return starts


def _iterate(ordered: np.ndarray, sums: np.ndarray, book: np.ndarray, limit: int = 400) -> np.ndarray:
    """Alternate nearest assignment and centroids until nothing moves; empty cells keep their value."""
    ends = np.zeros(len(book) + 1, int)
    for _ in range(limit):
        ends_new = np.concatenate(([0], np.searchsorted(ordered, (book[1:] + book[:-1]) / 2), [len(ordered)]))
        if (ends_new == ends).all():
            break
        ends = ends_new
        count = np.diff(ends)
        book = np.where(count > 0, (sums[ends[1:]] - sums[ends[:-1]]) / np.maximum(count, 1), book)
    return book


def best_book(row: np.ndarray, bits: int) -> np.ndarray:
    """Return the row on the best of all code books of 2^bits values, by dynamic programming over the sorted row."""
    ordered = np.sort(row.astype(np.float64))
    count = np.arange(len(ordered) + 1)
    first, second = (np.concatenate(([0.0], np.cumsum(ordered**p))) for p in (1, 2))
    width = count[None] - count[:, None]  # cost[i, j]: one value for the entries i..j-1
    cost = second[None] - second[:, None] - (first[None] - first[:, None]) ** 2 / np.maximum(width, 1)
    cost[width < 1] = np.inf
    total, splits = cost[0], []
    for _ in range(2**bits - 1):
        choices = total[:, None] + cost
        splits.append(choices.argmin(0))
        total = choices.min(0)
    end, ends = len(ordered), [len(ordered)]
    for split in reversed(splits):
        end = split[end]
        ends.append(end)
    ends.append(0)
    ends = np.array(ends[::-1])
    return nearest(row.astype(np.float64), np.diff(first[ends]) / np.diff(ends))


def clipped_uniform(row: np.ndarray, bits: int, clips: int = 200) -> np.ndarray:
    """Return the row on the best symmetric uniform book (2^bits - 1 values, zero among them) over all clips."""
    row = row.astype(np.float64)
    largest, half = np.abs(row).max(), 2 ** (bits - 1) - 1
    steps = largest / half * np.linspace(1 / clips, 1, clips)
    found = (np.clip(np.round(row / step), -half, half) * step for step in steps)
    return min(found, key=lambda q: np.square(row - q).sum())


def gain_one(row: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Scale an approximation so that <found, row> = <row, row>."""
    row = row.astype(np.float64)
    return found * ((row * row).sum() / (row * found).sum())
