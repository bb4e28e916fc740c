"""Weights and importances for encoders: ordinary ones, and those at the edge of what float32 and float16 hold."""

import numpy as np

F32 = np.float32


def weights(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """[rows, columns] float32 of one of KINDS."""
    generator = np.random.default_rng([seed, *kind.encode()])
    normal = generator.standard_normal((rows, columns)).astype(F32)
    return np.ascontiguousarray(KINDS[kind](normal, generator), F32)


def _spread(normal, generator, low, high, shape):
    return normal * (10.0 ** generator.uniform(low, high, shape)).astype(F32)


KINDS = {
    "normal": lambda x, g: x * F32(0.02),
    "student": lambda x, g: g.standard_t(3, x.shape) * 0.02,
    "bfloat16": lambda x, g: (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(F32),
    "ties": lambda x, g: np.rint(x * 3) / 2,
    "positive": lambda x, g: abs(x),
    "negative": lambda x, g: -abs(x),
    "outliers": lambda x, g: np.where(g.random(x.shape) < 0.005, x * 1000, x),
    "sparse": lambda x, g: np.where(g.random(x.shape) < 0.9, 0, x),
    "constant": lambda x, g: np.repeat(x[:, :1], x.shape[1], axis=1),
    "zero": lambda x, g: x * 0,
    "subnormal": lambda x, g: x * F32(1e-41),
    "small": lambda x, g: x * F32(1e-20),
    "huge": lambda x, g: x * F32(5e37),
    "scales": lambda x, g: _spread(x, g, -37, 37, (len(x), 1)),
    "mixed": lambda x, g: _spread(x, g, -20, 5, x.shape),
}


def importances(columns: int, seed: int = 0) -> dict[str, np.ndarray]:
    """[columns] float32 each, not negative."""
    generator = np.random.default_rng([seed, columns])
    uniform = generator.random(columns)
    return {
        "activations": generator.gamma(0.5, size=columns).astype(F32),
        "half-zero": np.where(uniform < 0.5, 0, uniform).astype(F32),
        "few": (uniform > 0.97).astype(F32),
        "zero": np.zeros(columns, F32),
        "wide": (10.0 ** generator.uniform(-30, 30, columns)).astype(F32),
    }
