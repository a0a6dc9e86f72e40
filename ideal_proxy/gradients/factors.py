"""Kronecker factors of a language model's Fisher matrix: what a block is, and the operators made from finished blocks.

What is covered: every `nn.Linear` (attention and MLP; a bias is one more input), every `nn.Embedding`, heads tied to
one, and the weights of normalisation layers. One block a layer; blocks do not interact. A block's matrix
[weight | bias] has a left side (outputs, or the vocabulary of an embedding) and a right side (inputs, or an embedding's
width):

* linear: left B = Σ_t g_t g_tᵀ / N, right A = Σ_t a_t a_tᵀ / n (Martens and Grosse 2015; "expand" of Eschenhagen et al.
  2023);
* embedding and vocabulary head: the vocabulary side keeps its diagonal only (exact for an embedding's one-hot inputs);
* tied head: one block for both uses, the sum of both Kronecker products in the eigenbasis of their right sides;
* norm scales: the diagonal of the Fisher matrix.

Any other parameter is listed in `Factors.excluded` and gets no response; where those are many, `refuse_uncovered`
refuses the model. Legend: N supervised tokens, n tokens of a
layer that a loss reaches, g_t the gradient of the summed loss at its output, a_t its input; l, r a block's sides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ideal_proxy.errors import UserError
from ideal_proxy.gradients.curvature import Vector, processes

DAMPING = 1e-2
"""Default damping of a layer, relative to the mean of its own eigenvalues."""

MAX_DENSE = 8192
"""A side longer than this keeps its diagonal only."""

MOST_UNCOVERED = 0.01
"""Of the trained weights: where more lie in no block, a response is not the model's."""

Method = Literal["ekfac", "kfac"]
FisherKind = Literal["sampled", "empirical"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Where one block's parameters live and what kind of layer uses them."""

    name: str  # module path; for a tied head, the embedding's
    kind: Literal["linear", "embedding", "tied", "norm"]  # which outer product its gradient is
    weight: str  # the weight's parameter name
    bias: str | None  # the bias's parameter name, if it has one
    shape: tuple[int, int]  # (left, right) of the block's matrix, the bias column included
    # module paths that use the weight, each with the role it plays
    modules: tuple[tuple[str, Literal["linear", "embedding", "norm"]], ...]
    dense: tuple[bool, bool]  # whether the (left, right) side has a full factor

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameter names of the block, weight first."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def floats(self) -> int:
        """Largest number of accumulator floats this layer needs while it is being built."""
        sides = sum(size * size if dense else size for size, dense in zip(self.shape, self.dense, strict=True))
        return 2 * sides + self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's Fisher matrix (Q_left ⊗ Q_right) diag(values) (Q_left ⊗ Q_right)ᵀ; columns of Q are eigenvectors."""

    layer: Layer  # what it belongs to
    left: Tensor | None  # (l, l) eigenvectors in columns, or None for the identity
    right: Tensor | None  # (r, r) eigenvectors in columns, or None for the identity
    values: Tensor  # (l, r) eigenvalues, per supervised token

    def transform(self, vector: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> Vector:
        """Apply a function of the matrix, given by what it does to eigenvalues, to this block of a vector."""
        weight = vector[self.layer.weight]
        device, dtype = weight.device, weight.dtype
        column = self.layer.kind == "norm"
        matrix = weight.unsqueeze(-1) if column else weight
        if self.layer.bias is not None:
            matrix = torch.cat([matrix, vector[self.layer.bias].unsqueeze(-1)], -1)
        matrix = matrix.to(self.values)
        if self.left is not None:
            matrix = self.left.T @ matrix
        if self.right is not None:
            matrix = matrix @ self.right
        matrix = matrix * change(self.values)
        if self.left is not None:
            matrix = self.left @ matrix
        if self.right is not None:
            matrix = matrix @ self.right.T
        matrix = matrix.to(device, dtype)
        result: Vector = {}
        if self.layer.bias is not None:
            result[self.layer.bias] = matrix[..., -1]
            matrix = matrix[..., :-1]
        result[self.layer.weight] = matrix.squeeze(-1) if column else matrix
        return result


def find_layers(
    model: nn.Module, select: Sequence[str] | None = None, max_dense: int = MAX_DENSE
) -> tuple[list[Layer], list[str]]:
    """The blocks a model's trainable parameters fall into, and the parameters in none."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    find_head = getattr(model, "get_output_embeddings", None)
    output = find_head() if callable(find_head) else None
    uses: dict[int, list[tuple[str, nn.Module]]] = {}
    seen = names.keys() - _multiplied_unseen(model)
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and id(weight) in seen and _role(module) is not None:
            uses.setdefault(id(weight), []).append((path, module))
    layers: list[Layer] = []
    for weight_id, users in uses.items():
        path, module = users[0]
        if select is not None and not any(fnmatch(user, pattern) for user, _ in users for pattern in select):
            continue
        roles = tuple((user, role) for user, m in users if (role := _role(m)) is not None)
        kinds = sorted(role for _, role in roles)
        if kinds not in (["linear"], ["embedding"], ["norm"], ["embedding", "linear"]):
            raise UserError(
                f"The layers {', '.join(user for user, _ in users)} share one weight, which has no Kronecker factors"
                " here; leave them out with a layer selection."
            )
        tied = len(kinds) == 2
        head = next((m for _, m in users if _role(m) == "linear"), module)
        bias = getattr(head, "bias", None)
        bias_name = names.get(id(bias)) if isinstance(bias, Tensor) and not tied else None
        shape = dict(model.named_parameters(remove_duplicate=False))[names[weight_id]].shape
        rows, columns = shape[0], (shape[1] if len(shape) > 1 else 1) + (bias_name is not None)
        vocabulary = tied or isinstance(module, nn.Embedding) or module is output
        norm = kinds == ["norm"]
        layers.append(
            Layer(
                name=path,
                kind="tied" if tied else roles[0][1],
                weight=names[weight_id],
                bias=bias_name,
                shape=(rows, columns),
                modules=roles,
                dense=(not vocabulary and not norm and rows <= max_dense, not norm and columns <= max_dense),
            )
        )
    if not layers:
        raise UserError(f"No trainable layer matches {select or '*'}; give patterns of module paths such as '*mlp*'.")
    covered = {name for layer in layers for name in layer.parameters}
    return layers, [name for name in names.values() if name not in covered]


def refuse_uncovered(model: nn.Module) -> None:
    """Refuse a model of whose trained weights many lie in no block, such as a GPT-2 trained in full."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    excluded = find_layers(model)[1]
    share = sum(sizes[name] for name in excluded) / sum(sizes.values())
    if share > MOST_UNCOVERED:
        raise UserError(
            f"gradients reach {1 - share:.0%} of the weights that are trained of a {type(model).__name__}, not "
            f"{excluded[0]} and its like; set gradients: none, or train low-rank updates of its linear layers"
        )


def _multiplied_unseen(model: nn.Module) -> set[int]:
    """Name the factors of low-rank updates that peft adds to a parameter, so that no hook sees their inputs."""
    wrappers = [module for module in model.modules() if type(module).__name__ == "ParamWrapper"]
    return {
        id(parameter)
        for wrapper in wrappers
        for part in ("lora_A", "lora_B")
        for parameter in wrapper.get_submodule(part).parameters()
    }


def _role(module: nn.Module) -> Literal["linear", "embedding", "norm"] | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    weight = getattr(module, "weight", None)
    vector = isinstance(weight, Tensor) and weight.dim() == 1
    return "norm" if vector and type(module).__name__.endswith("Norm") else None


class Factors:
    """Finished blocks of a Fisher matrix, in memory or one file a layer on disk.

    `layers` are the blocks' in module order, `excluded` the trainable parameters in no block.
    """

    def __init__(self, layers: Sequence[Layer], excluded: Sequence[str], folder: Path | None = None) -> None:
        self.layers, self.excluded = tuple(layers), tuple(excluded)
        self.supervised_tokens = 0  # that the Fisher matrix is the mean over
        self.passes = 0  # gradients of the data that making them took
        self._folder, self._blocks = folder, dict[str, Block]()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters that a block covers."""
        return tuple(name for layer in self.layers for name in layer.parameters)

    def block(self, name: str) -> Block:
        """One layer's block, read from disk where it lies there."""
        if name in self._blocks:
            return self._blocks[name]
        assert self._folder is not None
        layer = next(layer for layer in self.layers if layer.name == name)
        saved = torch.load(_block_path(self._folder, name), weights_only=True, mmap=True)
        return Block(layer, saved.get("left"), saved.get("right"), saved["values"])

    def inverse(self, damping: float = DAMPING) -> KroneckerOperator:
        """The damped inverse (F + λI)⁻¹ with λ = damping · mean eigenvalue, layer by layer."""
        if not damping >= 0:
            raise UserError(f"The damping is {damping}; give a number of at least 0 (default {DAMPING:g}).")

        def invert(values: Tensor) -> Tensor:
            mean = values.mean()
            if not mean > 0:
                return torch.zeros_like(values)
            shifted = values + damping * mean
            if not bool((shifted > 0).all()):
                raise UserError("A layer's curvature is singular and the damping is 0; give a positive damping.")
            return 1.0 / shifted

        return KroneckerOperator(self, invert)

    def put(self, block: Block) -> None:
        """Keep a finished block: in memory, or as a file that process 0 writes."""
        if self._folder is None:
            self._blocks[block.layer.name] = block
        elif processes()[0] == 0:
            path = _block_path(self._folder, block.layer.name)
            tensors = {"left": block.left, "right": block.right, "values": block.values}
            torch.save({k: t.cpu() for k, t in tensors.items() if t is not None}, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)


class KroneckerOperator:
    """A function of the Fisher matrix that acts block by block; parameters in no block map to nothing.

    `change` is what it does to a block's eigenvalues: without a change it is the matrix itself.
    """

    def __init__(self, factors: Factors, change: Callable[[Tensor], Tensor]) -> None:
        self.factors, self.change = factors, change

    def __matmul__(self, vector: Mapping[str, Tensor]) -> Vector:
        """Apply the operator to a vector, or to a stack of them along leading axes."""
        return {name: value for part in self.layerwise(vector) for name, value in part.items()}

    def layerwise(self, vector: Mapping[str, Tensor]) -> Iterator[Vector]:
        """Apply the operator one layer at a time, so that only one block and one result need memory."""
        for layer in self.factors.layers:
            yield self.factors.block(layer.name).transform(vector, self.change)


def _block_path(folder: Path, name: str) -> Path:
    return folder / f"{name or 'model'}.pt"
