"""How a verb becomes a torch operator: definition, kernels by device, fake kernel, autograd rule, vmap rule.

An operator takes its patterns by `key`, since the dispatcher knows strings and not our types. The last axis of each of
its tensors is its own (packed values or nodes); all others are batch axes, which broadcast. Operators that loop
under vmap are free of this rule.

The module is longer than others: definition, autograd and vmap of an operator are one subject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from sparseggm.graph.derived import derived
from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import checks
from sparseggm.positivity import namespace
from sparseggm.torch.operators import portable
from sparseggm.torch.operators.tracing import constant_in_graphs, untraced

Shape = tuple[int, ...]

_PLAIN = (Tensor, torch.nn.Parameter)

_library = torch.library.Library("sparseggm", "FRAGMENT")
derived.__get__ = untraced(derived.__get__)  # type: ignore[method-assign]

PASSES = "~"
"""Before the key of a pattern: the operator is part of a backward pass, where numbers that are not finite pass."""

_devices = {"meta"}
"""Types of device for which there are kernels, or none are needed."""

_traced: dict[str, Pattern] = {}  # a compiled graph holds the key of a pattern, so the pattern must outlive the graph


def key_of(pattern: Pattern, verb: str, *tensors: Tensor) -> str:
    """The key to call operator `verb` with, once its tensors are known to be where there are kernels.

    A program of `torch.export` may run in another process, so its key is the whole pattern as text. Without side
    effects, so that torch.compile can trace it.
    """
    for tensor in tensors:
        if tensor.device.type not in _devices:
            raise ValueError(
                f"{verb}: needs tensors on the CPU, got one on {tensor.device}. Move it with .cpu(): nothing is copied "
                "silently."
            )
    checks.require_pattern(verb, pattern)
    key = _text_of(pattern) if torch.compiler.is_exporting() else pattern.key
    if torch.compiler.is_dynamo_compiling() or not checks.lets_non_finite_pass():
        return key
    return PASSES + key  # a compiled graph must know it when it runs


@constant_in_graphs
def _text_of(pattern: Pattern) -> str:
    return portable.to_text(pattern)


def pattern_of(key: str) -> Pattern:
    """The pattern an operator was called with. Its caller keeps it alive, and its backward's `ctx`."""
    key = key.removeprefix(PASSES)
    pattern = _traced.get(key)
    if pattern is not None:
        return pattern
    return _traced.setdefault(key, portable.from_text(key)) if ":" in key else Pattern.from_key(key)


def _keeping_patterns(fake: Callable[..., Any]) -> Callable[..., Any]:
    """The fake kernel; where it is asked by a tracer the patterns stay alive, for a compiled graph holds keys alone."""

    def keeping(*args: Any) -> Any:
        if any(isinstance(arg, FakeTensor) for arg in args):
            keys = [arg.removeprefix(PASSES) for arg in args if isinstance(arg, str) and arg]
            _traced.update((key, pattern_of(key)) for key in keys)
        return fake(*args)

    return keeping


def array(tensor: Tensor) -> Any:
    """The tensor's memory as a NumPy array."""
    tensor = tensor.resolve_neg()
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()


def inside_functorch() -> bool:
    """Whether a transform of `torch.func` is at work, as vmap: only verbs may be called, which have rules for it."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def have_values(*tensors: Tensor) -> bool:
    """Whether values may decide what happens: not in a trace, under `torch.func`, or on the meta device."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if torch._C._get_tracing_state() is not None:  # of torch.jit.trace
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return False
        if not tensor.is_cpu:
            return False
    return True


def may_skip_dispatcher(*tensors: Tensor) -> bool:
    """Whether an operator may skip the dispatcher: `have_values`, and no dispatch mode or tangent is to be seen."""
    if not have_values(*tensors) or torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return False
    return not any(map(torch._C._functorch.is_legacy_batchedtensor, tensors))  # torch.autograd.grad(is_grads_batched=)


def batch_of(*tensors: Tensor) -> Shape:
    """The common batch shape."""
    shapes = [tensor.shape[:-1] for tensor in tensors]
    longest = shapes[0]
    for shape in shapes:
        longest = shape if len(shape) > len(longest) else longest
    for shape in shapes:
        if shape and shape != longest:
            return tuple(torch.broadcast_shapes(*shapes))  # which costs as much as a small operator
    return tuple(longest)


@overload
def sum_to_shape(gradient: Tensor, like: Tensor) -> Tensor: ...
@overload
def sum_to_shape(gradient: Tensor | None, like: Tensor) -> Tensor | None: ...
def sum_to_shape(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    """Summed over the axes that broadcasting added to `like`."""
    return gradient if gradient is None or gradient.shape == like.shape else gradient.sum_to_size(like.shape)


def register(
    signature: str,
    kernels: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    vjp: Callable[..., Any] | None = None,
    *,
    recorded: Callable[..., Any] | None = None,
    loops: bool = False,
    tags: tuple[torch.Tag, ...] = (),
) -> Any:
    """Define an operator, its kernels, its fake kernel and its vmap rule; with `setup` and `vjp`, its autograd rule.

    Args:
        signature: of strings, tensors, and lists of integers, which are batch shapes.
        kernels: by torch's dispatch key, such as "CPU". Results are new memory, never an alias of an argument.
        fake: of the same arguments.
        setup: (ctx, arguments, result) keeps what the backward needs.
        vjp: (ctx, cotangents) → those of the arguments, made of differentiable operators.
        recorded: in place of `setup` and `vjp`, of the same arguments: a function of differentiable operators with the
            same result, called where a gradient will be asked for. So may be kept what only gradients need.
        loops: whether vmap calls the operator once an element, as it must where results have the shapes of arguments,
            summed over the axes that broadcasting added.
        tags: torch's, such as `nondeterministic_seeded`; vmap of such an operator needs randomness="different".
    """
    name = signature.split("(")[0]
    _library.define(signature, tags=tags)
    for key, kernel in kernels.items():
        _library.impl(name, _passing(kernel), key)
        _devices.add(key.lower())
    torch.library.register_fake(f"sparseggm::{name}", _keeping_patterns(fake), lib=_library)
    operator = getattr(torch.ops.sparseggm, name).default
    torch.library.register_vmap(
        f"sparseggm::{name}", (_loop_rule if loops else _vmap_rule)(operator, fake), lib=_library
    )
    if recorded is not None:
        autograd = _recording_kernel(operator, recorded)
    elif setup is not None and vjp is not None:
        autograd = _autograd_kernel(operator, setup, vjp)
    else:
        autograd = _constant_kernel(operator)
    _library.impl(name, _refusing_tangents(operator, autograd), "Autograd", with_keyset=True)
    return operator


def _passing(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, which lets numbers that are not finite pass where its key says so."""

    def kernel(*args: Any) -> Any:
        if isinstance(args[0], str) and args[0].startswith(PASSES):
            with checks.non_finite_passes():
                return run(*args)
        return run(*args)

    return kernel


def _autograd_kernel(operator: Any, setup: Callable[..., None], vjp: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.library.register_autograd` makes of a rule, made to work under torch.func too.

    torch's own wraps the rule in an `autograd.Function`, which stands above all levels of `torch.func` and refuses to
    run inside one; the dispatcher brings an operator here once a level, so a function of a single level is right.
    """

    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        # A function's forward has both off; but the levels below may record, and must see tangents to refuse them.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            output = _below(operator, keyset, *args)
        setup(ctx, args, output)
        return output

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        with checks.non_finite_passes():
            return None, *vjp(ctx, *cotangents)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"{operator._opname}_backward", (_SingleLevelFunction,), methods)

    def kernel(keyset: Any, *args: Any) -> Any:
        if not _records(*args):
            return _below(operator, keyset, *args)
        with enable_single_level_autograd_function():
            return function.apply(keyset, *args)

    return kernel


def _recording_kernel(operator: Any, recorded: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(keyset: Any, *args: Any) -> Any:
        return recorded(*args) if _records(*args) else _below(operator, keyset, *args)

    return kernel


def _constant_kernel(operator: Any) -> Callable[..., Any]:
    """Of an operator without gradients, as those of backward passes are where nothing differentiates them."""

    def kernel(keyset: Any, *args: Any) -> Any:
        if _records(*args):
            raise NotImplementedError(f"{operator._opname}: has no gradient.")
        return _below(operator, keyset, *args)

    return kernel


def _records(*args: Any) -> bool:
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*args)


def _below(operator: Any, keyset: Any, *args: Any) -> Any:
    """The operator without its own autograd rule."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _refusing_tangents(operator: Any, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, which raises in forward mode: tangents would otherwise be lost in silence."""

    def refusing(keyset: Any, *args: Any) -> Any:
        for arg in args:
            if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
                raise NotImplementedError(
                    f"{operator._opname}: has no forward mode. Use reverse mode: backward, torch.func.vjp, grad or "
                    "jacrev; for a Hessian jacrev(jacrev(f))."
                )
        return kernel(keyset, *args)

    return refusing


def _vmap_rule(operator: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The mapped axis becomes the first batch axis of the same operator, which broadcasts over batch axes anyway."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        _require_randomness(operator, info.randomness)
        size = info.batch_size
        single = [_one_of(arg, dim) if isinstance(arg, Tensor) else arg for arg, dim in zip(args, in_dims, strict=True)]
        rank = max(map(_batch_axes, single))
        mapped = [_mapped(arg, dim, size, rank) for arg, dim in zip(args, in_dims, strict=True)]
        results, shapes = operator(*mapped), fake(*single)
        if isinstance(results, Tensor):
            return _unmapped(results, shapes, size)
        pairs = [_unmapped(result, one, size) for result, one in zip(results, shapes, strict=True)]
        return tuple(result for result, _ in pairs), tuple(dim for _, dim in pairs)

    return rule


def _require_randomness(operator: Any, randomness: str) -> None:
    """Each mapped element has noise of its own, or none does."""
    if torch.Tag.nondeterministic_seeded in operator.tags and randomness != "different":
        raise RuntimeError(
            f'{operator._opname}: vmap was called with randomness="{randomness}", it needs "different". For the same '
            "noise in each element, make it outside and colorize it inside."
        )


def _one_of(tensor: Tensor, dim: int | None) -> Tensor:
    """The shape of one of the mapped elements, without memory."""
    shape = list(tensor.shape)
    if dim is not None:
        del shape[dim]
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _batch_axes(arg: Any) -> int:
    """How many batch axes an argument has: a tensor all but the last, a list of integers is a batch shape."""
    if isinstance(arg, Tensor):
        return arg.ndim - 1
    return len(arg) if isinstance(arg, list | tuple) else 0


def _mapped(arg: Any, dim: int | None, size: int, rank: int) -> Any:
    """An argument with the mapped axis in front of `rank` batch axes; a tensor that lacks it broadcasts, uncopied.

    A batch shape has it in any case: what is summed is summed for each mapped element.
    """
    if isinstance(arg, list | tuple):
        return (size, *(1,) * (rank - len(arg)), *arg)
    if not isinstance(arg, Tensor) or dim is None:
        return arg
    front = arg.movedim(dim, 0)
    return front.reshape(size, *(1,) * (rank + 2 - front.ndim), *front.shape[1:])


def _unmapped(result: Tensor, one: Tensor, size: int) -> tuple[Tensor, int | None]:
    """A result without the axes of size 1 that `_mapped` put in, and its mapped axis if it has any."""
    if result.numel() == size * one.numel():
        return result.reshape(size, *one.shape), 0
    return result, None


def _loop_rule(operator: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """One call for each mapped element; for operators of several results."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def element(i: int) -> list[Any]:
            return [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)]

        single = [_one_of(arg, dim) if isinstance(arg, Tensor) else arg for arg, dim in zip(args, in_dims, strict=True)]
        shapes = [one.shape for one in fake(*single)]
        of_each = [operator(*element(i)) for i in range(info.batch_size)]
        like = next(arg for arg in args if isinstance(arg, Tensor))
        stacked = [torch.stack(results) for results in zip(*of_each, strict=True)]
        return tuple(stacked or [like.new_empty((0, *shape)) for shape in shapes]), (0,) * len(shapes)

    return rule


def register_pair(
    verb: Callable[..., Any],
    size: Callable[[Pattern], int],
    rule: Callable[[Pattern, tuple[bool, bool], Tensor, Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None]],
) -> Callable[[str, Tensor, Tensor], Tensor]:
    """Register a verb of two tensors.

    Args:
        verb: the NumPy function.
        size: of the last axis of the result; its batch axes are those of the arguments, broadcast.
        rule: (pattern, which cotangents are needed, a, b, result, its cotangent) → the cotangents of a and b, which are
            then summed over the axes that broadcasting added.
    """

    def run(key: str, a: Tensor, b: Tensor) -> Tensor:
        return torch.from_numpy(verb(pattern_of(key), array(a), array(b)))

    def fake(key: str, a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty((*batch_of(a, b), size(pattern_of(key))))

    def setup(ctx: Any, inputs: tuple[str, Tensor, Tensor], output: Tensor) -> None:
        ctx.pattern = pattern_of(inputs[0])
        ctx.save_for_backward(*inputs[1:], output)

    def vjp(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        a, b, result = ctx.saved_tensors
        *_, needs_a, needs_b = ctx.needs_input_grad
        a_bar, b_bar = rule(ctx.pattern, (needs_a, needs_b), a, b, result, cotangent)
        return None, sum_to_shape(a_bar, a), sum_to_shape(b_bar, b)

    operator: Callable[[str, Tensor, Tensor], Tensor]
    operator = register(f"{verb.__name__}(str key, Tensor a, Tensor b) -> Tensor", {"CPU": run}, fake, setup, vjp)
    return operator


def vjp(function: Callable[..., Any], inputs: tuple[Tensor, ...], cotangents: Any) -> Any:
    """Cotangents of the inputs of a differentiable function, themselves differentiable, under every transform."""
    return torch.func.vjp(function, *inputs)[1](cotangents)


constant_in_graphs(namespace.constant)


def index(positions: Any, beside: Tensor | None = None) -> Tensor:
    """Packed positions as torch indexes, on the device of the tensor that they index; without one, on the CPU."""
    indexes = positions.astype(np.int64)
    on_cpu = namespace.constant(indexes) if torch.compiler.is_exporting() else torch.from_numpy(indexes)
    return on_cpu if beside is None or beside.is_cpu else on_cpu.to(beside.device)
