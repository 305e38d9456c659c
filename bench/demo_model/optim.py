"""Muon for the matrices inside the blocks, Adam for everything else."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from bench.demo_model.weights import Parameters

# Matrices that are tables, gates or mixers rather than maps between feature spaces: Adam's.
NOT_MUON = ("embed.", "head.", "hc_", "gate.weight", ".ape", "norm", "sink", "weights_proj")


@dataclass
class Optimiser:
    """State by parameter name; `step` counts updates."""

    first: Parameters
    second: Parameters
    step: int = 0

    @staticmethod
    def start(parameters: Parameters) -> Optimiser:
        first = {name: mx.zeros_like(value) for name, value in parameters.items()}
        second = {n: mx.zeros_like(v) for n, v in parameters.items() if not by_muon(n, v)}
        return Optimiser(first, second)

    def update(
        self, parameters: Parameters, grads: Parameters, muon: float, adam: float, idle: tuple[str, ...] = ()
    ) -> None:
        """Change `parameters` in place; `muon` and `adam` are the two learning rates.

        Names that contain a word of `idle` took no part in this step: momentum alone must not move them.
        """
        self.step += 1
        for name, value in parameters.items():
            if name.endswith("gate.bias") or any(word in name for word in idle):
                continue
            grad = grads[name]
            if by_muon(name, value):
                self.first[name] = 0.95 * self.first[name] + grad
                rate = muon
                if value.ndim == 3:  # experts: most of the cost, so twice the step every second time
                    if self.step % 2:
                        continue
                    rate = 2 * muon
                parameters[name] = value - rate * orthogonal(grad + 0.95 * self.first[name])
            else:
                self.first[name] = 0.9 * self.first[name] + 0.1 * grad
                self.second[name] = 0.98 * self.second[name] + 0.02 * grad * grad
                mean = self.first[name] / (1 - 0.9**self.step)
                spread = self.second[name] / (1 - 0.98**self.step)
                parameters[name] = value - adam * mean / (mx.sqrt(spread) + 1e-8)
        mx.eval(parameters, self.first, self.second)


def by_muon(name: str, value: mx.array) -> bool:
    return value.ndim >= 2 and not any(part in name for part in NOT_MUON)


def orthogonal(grad: mx.array) -> mx.array:
    """The nearest matrix with equal singular values (five Newton-Schulz steps), of a usual weight's size."""
    if grad.ndim == 3 and grad.shape[1] > grad.shape[2]:  # gate and up are two matrices
        half = grad.shape[1] // 2
        return mx.concatenate([orthogonal(grad[:, :half]), orthogonal(grad[:, half:])], axis=1)
    rows, columns = grad.shape[-2:]
    x = grad.swapaxes(-1, -2) if rows > columns else grad
    x = x / (mx.sqrt(mx.sum(x * x, axis=(-2, -1), keepdims=True)) + 1e-12)
    for _ in range(5):
        square = x @ x.swapaxes(-1, -2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    x = x.swapaxes(-1, -2) if rows > columns else x
    size: float = max(1.0, rows / columns) ** 0.5
    return x * size
