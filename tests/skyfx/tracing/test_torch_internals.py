"""Each private part of torch does what skyfx takes it for."""

import importlib
import linecache
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._traceback import CapturedTraceback
from torch.utils.checkpoint import checkpoint

from skyfx.tracing import torch_internals
from skyfx.tracing.quiet_tracing import quiet_tracing


class Doubled(torch.autograd.Function):
    """A custom gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Seen(TorchFunctionMode):
    """Notes the functions of torch that are called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def in_another_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_an_inherited_attribute_is_inherited_again() -> None:
    class Child(nn.Module):
        pass

    with torch_internals.replaced(Child, "forward", len):
        assert Child.forward is len
    assert "forward" not in vars(Child)


def test_a_checkpoint_runs_within_a_context_of_its_own() -> None:
    seen = list[str]()

    @contextmanager
    def within() -> Iterator[None]:
        seen.append("begins")
        yield
        seen.append("ends")

    x = torch.ones(2, requires_grad=True)
    with torch_internals.around_checkpoints(within):
        y = checkpoint(torch.sin, x, use_reentrant=False)
    assert seen == ["begins", "ends"]
    y.sum().backward()
    assert torch.equal(x.grad, torch.cos(torch.ones(2)))


bound_early = Doubled.apply


def test_autograd_functions_are_called_otherwise_in_this_thread() -> None:
    seen, x = list[str](), torch.ones(2, requires_grad=True)

    def call(name: str) -> Callable[..., Any]:
        def instead(function: type, own: Callable[..., Any], *args: Any) -> Any:
            seen.append(f"{name} {function.__name__} {len(args)}")
            return own(*args)

        return instead

    with torch_internals.replaced_functions(call("outer")):
        with torch_internals.replaced_functions(call("inner")):
            y = bound_early(x)
        Doubled.apply(x)
        in_another_thread(lambda: Doubled.apply(x))
    Doubled.apply(x)
    assert seen == ["inner Doubled 1", "outer Doubled 1", "outer Doubled 1"]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], 2 * torch.ones(2))


def test_operators_of_the_users_own_are_no_autograd_functions() -> None:
    operator = torch.library.custom_op("skyfx_tests::negative", mutates_args=())(negative)
    operator.register_autograd(lambda ctx, gradient: -gradient)
    seen = list[type]()
    with torch_internals.replaced_functions(lambda function, own, *args: seen.append(function)):
        operator(torch.ones(2, requires_grad=True))
    assert seen == []


def negative(x: Tensor) -> Tensor:
    return -x


def test_a_reentrant_checkpoint_is_an_autograd_function() -> None:
    seen = list[bool]()

    def instead(function: type, own: Callable[..., Any], *args: Any) -> Any:
        seen.append(torch_internals.is_reentrant_checkpoint(function))
        if not seen[-1]:
            return own(*args)
        run, _, *given = args
        return run(*given)

    x = torch.ones(2, requires_grad=True)
    with torch_internals.replaced_functions(instead):
        assert torch.equal(checkpoint(torch.neg, x, use_reentrant=True), -x)
        assert torch.equal(checkpoint(torch.neg, x, use_reentrant=False), -x)
        Doubled.apply(x)
    assert seen == [True, False]


def test_inference_modes_switch_gradients() -> None:
    seen = list[bool]()
    bound = torch.inference_mode(True)(torch.is_grad_enabled)
    with torch_internals.inference_modes_as_grad_modes():
        with torch.inference_mode():
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
            with torch.inference_mode(False):
                assert torch.is_grad_enabled()
            assert not torch.is_grad_enabled()
            in_another_thread(lambda: seen.append(torch.is_inference_mode_enabled()))
        assert torch.is_grad_enabled()
        assert not bound()
    assert seen == [False]  # modes of that thread
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.autograd.grad(x.sin().sum(), x),
        lambda x: torch.func.grad(lambda y: y.sin().sum())(x),
        lambda x: torch.func.vjp(torch.sin, x),
        lambda x: torch.func.jvp(torch.sin, (x,), (x,)),
        lambda x: torch.func.hessian(lambda y: y.sin().sum())(x),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives_are_noticed(compute: Callable[[Tensor], Any]) -> None:
    seen, x = list[bool](), torch.ones(2, requires_grad=True)
    with torch_internals.checked_derivatives(seen.append):
        in_another_thread(lambda: compute(x))
        assert seen == []
        compute(x)
        assert set(seen) == {False}
        x.sin().sum().backward()
        assert seen.pop() is True
    first = len(seen)
    compute(x)
    assert len(seen) == first


def test_derivatives_of_functions_take_no_hooks_of_saved_tensors() -> None:
    said = torch_internals.NO_SAVED_TENSORS_HOOKS
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with hooks, pytest.raises(RuntimeError, match=said):
        torch.func.grad(lambda y: y.sin().sum())(torch.ones(2))


def test_hooks_of_tensors_are_noticed() -> None:
    seen, x = list[Tensor](), torch.ones(2, requires_grad=True)
    with torch_internals.checked_hooks(lambda tensor, hook: seen.append(tensor)):
        x.register_hook(lambda gradient: 3 * gradient)
    (2 * x).sum().backward()
    assert [*map(id, seen)] == [id(x)]
    assert torch.equal(x.grad, torch.full((2,), 6.0))


def test_data_is_an_operator() -> None:
    x = torch.ones(2, requires_grad=True)
    y = torch.ops.aten.data(x)
    y.add_(1)
    assert not y.requires_grad
    assert torch.equal(x, torch.full((2,), 2.0))
    assert torch_internals.num_writes(x) == 0  # unlike `detach`: backward does not mind


def test_vmap_is_noticed() -> None:
    seen = list[str]()
    with torch_internals.checked_vmap(lambda *args: seen.append("vmap")):
        torch.vmap(torch.sin)(torch.ones(2, 2))
        in_another_thread(lambda: torch.vmap(torch.sin)(torch.ones(2, 2)))
    torch.vmap(torch.sin)(torch.ones(2, 2))
    assert seen == ["vmap"]


def test_a_scripted_function_runs_as_in_its_first_call() -> None:
    def half(x: Tensor, by: float = 2.0, add: int = 0) -> Tensor:
        return torch.sigmoid(x) / by + add

    with pytest.warns(DeprecationWarning, match="script"):
        halved = torch.jit.script(half)
    seen, x = list[Any](), torch.ones(2, requires_grad=True)
    first = type(halved(x).grad_fn)
    for _ in range(2):
        halved(x)
    assert type(halved(x).grad_fn) is not first
    with torch_internals.scripts_as_at_first():
        for _ in range(3):
            assert type(halved(x).grad_fn) is first
        assert torch.equal(halved(x, 4.0, add=1), torch.sigmoid(x) / 4 + 1)
        in_another_thread(lambda: seen.append(type(halved(x).grad_fn)))
    assert seen == [type(halved(x).grad_fn)]
    assert seen != [first]


@pytest.mark.parametrize("exported", [True, False])
def test_torch_says_whether_it_exports(exported: bool) -> None:
    before = torch.compiler.is_exporting(), torch.compiler.is_compiling()
    with torch_internals.export_flags(exported=exported):
        assert torch.compiler.is_exporting() is exported
        assert torch.compiler.is_compiling() is exported
    assert (torch.compiler.is_exporting(), torch.compiler.is_compiling()) == before


def test_a_mode_sees_the_lists_of_fake_tensors() -> None:
    fake = FakeTensorMode().from_tensor(torch.ones(2))
    with torch_internals.interceptable_lists(), Seen() as seen, pytest.raises(RuntimeError):
        fake.tolist()
    assert Tensor.tolist in seen.functions


@pytest.mark.parametrize(
    "unknown",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: x.sum().item() > 0 and None,
        lambda x: x.nonzero(),
    ],
)
def test_torch_raises_where_a_value_is_unknown(unknown: Callable[[Tensor], Any]) -> None:
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(torch_internals.UNKNOWN_VALUE_ERRORS),
    ):
        unknown(mode.from_tensor(torch.ones(2)))


def test_any_attribute_name_can_be_read() -> None:
    graph, root = fx.Graph(), nn.Module()
    names = ["class", "None", 'a"b', "a\nb", "a\\nb", "0", "plain"]
    for name in names:
        root.register_buffer(name, torch.ones(()))
    graph.output([graph.get_attr(name) for name in names])
    with torch_internals.any_attribute_name():
        module = fx.GraphModule(root, graph)
    assert module() == [1] * len(names)


def test_an_operator_with_the_name_of_a_keyword_can_be_called() -> None:
    graph = fx.Graph()
    drawn = graph.call_function(torch.ops.aten.ones.default, ([9],))
    graph.output(graph.call_function(getattr(torch.ops.aten.random_, "from"), (drawn, 2, 4)))
    with torch_internals.any_attribute_name():
        module = fx.GraphModule(nn.Module(), graph)
    assert set(module().tolist()) <= {2.0, 3.0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")
def test_packed_weights_are_hidden() -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)))
    packed, x = model[0]._packed_params, torch.ones(1, 2)
    expected = model(x)
    with torch_internals.script_objects_hidden(model):
        assert packed._packed_params is None
    assert torch.equal(model(x), expected)


def test_lines_of_a_stack_are_looked_up_when_they_are_read() -> None:
    def here() -> Any:
        return CapturedTraceback.extract().summary()

    found: list[Any] = []
    for within in (nullcontext(), torch_internals.lines_on_demand()):
        with within:
            found.append(here().format())
    assert found[0] == found[1]
    assert "CapturedTraceback.extract().summary()" in found[1][-1]
    with torch_internals.lines_on_demand():
        too_early = torch_internals.replaced(linecache, "getline", lambda *_: pytest.fail("early"))
        with too_early:
            here()


def test_tensors_can_be_exchanged_where_modules_hold_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    held = [tensor for tensors in torch_internals.own_tensors(model) for tensor in tensors.values()]
    assert [*map(id, held)] == [
        id(getattr(part, name)) for part in model for name in (*part._parameters, *part._buffers)
    ]
    new = nn.Parameter(torch.zeros(2))
    for tensors in torch_internals.own_tensors(model[1]):
        if "weight" in tensors:
            tensors["weight"] = new
    assert model[1].weight is new
    assert dict(model.named_parameters())["1.weight"] is new


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_views_share_a_storage_and_copies_do_not(device: str) -> None:
    x = torch.ones(4, 4, device=device)
    assert torch_internals.storage_id(x) == torch_internals.storage_id(x[1:].t().detach())
    assert torch_internals.storage_id(x) != torch_internals.storage_id(x.clone())


def test_fake_tensors_share_storages_as_real_ones_do() -> None:
    with FakeTensorMode():
        x = torch.ones(4)
        assert torch_internals.storage_id(x) == torch_internals.storage_id(x.view(2, 2))
        assert torch_internals.storage_id(x) != torch_internals.storage_id(x + 1)


def test_an_array_of_numpy_shares_the_storage_of_its_tensor() -> None:
    x = torch.ones(4)
    assert torch_internals.storage_id(torch.from_numpy(x.numpy())) == torch_internals.storage_id(x)


def test_writes_in_place_are_counted() -> None:
    x = torch.ones(4)
    x.add_(1)
    x[0] = 3
    assert torch_internals.num_writes(x) == 2


def test_operators_have_schemas_that_say_what_they_write() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.add_.Tensor, (x, 1))
    schema = torch_internals.schema_of(node)
    assert schema.name == "aten::add_"
    assert [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write] == ["self"]
    assert torch_internals.schema_of(graph.call_function(len, (x,))) is None


def test_each_allocation_is_told_in_its_turn() -> None:
    returned, sizes = torch_internals.allocations_of(lambda: (torch.ones(1000) + 1) * 2)
    assert torch.equal(returned, torch.full((1000,), 4.0))
    assert [size for size in sizes if abs(size) == 4000] == [4000, 4000, -4000, 4000, -4000]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch._subclasses.fake_tensor", "failed while attempting to run meta for add"),
        ("torch.fx.experimental.symbolic_shapes", "Unable to find user code corresponding to {u0}"),
    ],
)
def test_only_known_log_messages_are_silenced(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = list[str]()
    logger = logging.getLogger(name)
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: kept.append(record.getMessage()))
    logger.addHandler(handler)
    try:
        with quiet_tracing():
            logger.warning(message)
            logger.warning("another message")
        logger.warning(message)
    finally:
        logger.removeHandler(handler)
    assert kept == ["another message", message]


def test_only_known_warnings_are_silenced() -> None:
    known = (
        "The tensor attributes self.model.rnn._flat_weights[0], self.model.rnn._flat_weights[12] "
        "were assigned during export. Such attributes must be registered as buffers"
    )
    others = ["the tensor attribute of my model was assigned", "my own warning"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_tracing():
            for message in (known, *others):
                warnings.warn(message, stacklevel=1)
    assert [str(warning.message) for warning in caught] == others


def test_a_schema_says_what_an_operator_writes_to() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    adds = graph.call_function(torch.ops.aten.add_.Tensor, (x, y))
    into = graph.call_function(torch.ops.aten.add.out, (x, y), {"out": y})
    reads = graph.call_function(torch.ops.aten.add.Tensor, (x, y))
    found = [list(torch_internals.written_arguments(node)) for node in (adds, into, reads, x)]
    assert found == [[x], [y], [], []]


def test_an_operator_made_of_others_may_return_its_input() -> None:
    class Operators(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.gelu(functional.dropout(x, 0.0)).reshape(-1)

    graph = torch.export.export(Operators(), (torch.ones(2, 3),)).graph
    found = {node.name: torch_internals.may_return_input(node) for node in graph.nodes}
    assert found == {
        **{"x": False, "dropout": True, "gelu": False, "output": False},
        "reshape": False,  # its schema tells
    }


def test_the_decisions_of_torch_are_functions_of_its_modules() -> None:
    for module, name in torch_internals.DECISIONS:
        assert callable(getattr(importlib.import_module(module), name))


def test_parametrizations_are_not_cached() -> None:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))
    with nn.utils.parametrize.cached():
        cached = layer.weight
        with torch_internals.no_parametrization_cache():
            assert layer.weight is not cached
        assert layer.weight is cached
