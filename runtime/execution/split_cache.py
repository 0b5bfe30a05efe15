"""The splits of a model that have been made: one for each mode and shape of micro-batch."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.shared_data import lacks_values
from skyfx.runtime.execution.stage import FirstCall, StagedModel
from skyfx.runtime.execution.step import autocast_here
from skyfx.runtime.state.caller_modes import check_function_modes
from skyfx.runtime.state.fixed_values import FixedValues, Same, plain_text
from skyfx.runtime.state.reachable_state import check_global_hooks, module_hooks_of

logger = logging.getLogger(__name__)

SplitFn = Callable[[Batch, bool], StagedModel]
"""Splits the model for micro-batches like this one, for training or not, as the plan says."""

_HOOK_SETTINGS = 4
"""How many sets of hooks have splits: some register a hook for each step."""


class Setting(NamedTuple):
    """What a split was made for, beside the shape of micro-batch.

    Attributes:
        training: whether it trains.
        modes: of each module, where not all train, or not all infer.
        trained: whether each parameter needs a gradient, in training or if code asks for it.
        hooks: of all modules.
        autocast: types by device type.
        default_dtype: the type of tensors that forward makes of numbers.
    """

    training: bool
    modes: Any
    trained: tuple[bool, ...]
    hooks: tuple[Same, ...]
    autocast: Any
    default_dtype: torch.dtype


class SplitCache:
    """The splits that have been made, until the model has other tensors or fixed values."""

    def __init__(self, model: nn.Module, split: SplitFn) -> None:
        """Split this model with this function."""
        self._model, self._split = model, split
        self._made: dict[tuple[Setting, Any], StagedModel] = {}
        self._tensors_then: list[tuple[Tensor, torch.dtype]] = []
        self._fixed: FixedValues | None = None  # found with the first split: it takes a while
        self._values_then: dict[str, Any] = {}
        self._values_at_first: dict[str, Any] = {}
        self._is_told = False

    def put(self, part: Batch, staged: StagedModel, *, training: bool) -> None:
        """Add a split that has been made for micro-batches like this one."""
        setting = self.setting(training)
        kept = [*dict.fromkeys(made.hooks for made, _ in self._made)][1 - _HOOK_SETTINGS :]
        for key in [key for key in self._made if key[0].hooks not in (setting.hooks, *kept)]:
            del self._made[key]
        self._made[setting, part.signature] = staged
        self._tensors_then = self._tensors()
        self._fixed = self._find_fixed()
        del self._made[setting, part.signature]
        self._made[self.setting(training), part.signature] = staged  # what it asks is known now
        self._values_then = self.values()
        self._values_at_first = self._values_at_first or self._values_then

    def of(self, parts: Sequence[Batch], *, training: bool) -> list[StagedModel]:
        """The split of each micro-batch."""
        self._forget_stale()
        setting = self.setting(training)
        keys = [(setting, part.signature) for part in parts]
        for key, part in zip(keys, parts, strict=True):
            if key not in self._made:
                self.put(part, self._split(part, training), training=training)
        return [self._made[key] for key in keys]

    def called(self) -> None:
        """The model has been called to infer: what a first call makes stays from now on."""
        self._forget_stale_firsts()
        for first in self._firsts():
            first.settle()

    def lacking(self, parts: Sequence[Batch], *, training: bool) -> list[int]:
        """The micro-batches without values here, of which a split is still to be made."""
        if not lacks_values(parts[0]):
            return []
        self._forget_stale()
        setting = self.setting(training)
        keys = {(setting, part.signature): i for i, part in enumerate(parts)}
        return [i for key, i in keys.items() if key not in self._made]

    def values(self) -> dict[str, Any]:
        """The values that captures have fixed, by name; not those that the steps change."""
        return self._fixed.values() if self._fixed else {}

    def _find_fixed(self) -> FixedValues:
        made = self._made.values()
        changed = {x for one in made for x in (*one.assigned.names, *one.hooks.changes)}
        hooks = dict.fromkeys(x for setting, _ in self._made for x in setting.hooks)
        if any(x.is_meta for x in self._model.parameters()):  # what they change is not known
            observing = {Same(hook) for one in made for _, hook in one.hooks.hooks}
            hooks = {x: None for x in hooks if x not in observing}
        return FixedValues(self._model, [x.of for x in hooks], changed)

    def asked(self, training: bool, *, shared: bool) -> dict[str, Any]:
        """What has to be the same in all processes, where several share the model."""
        now = self.setting(training)
        asked = {
            "autocast": now.autocast or "off",
            "modules in training mode": now.modes or "all or none",
        }
        changed = self._changed_values() if shared else []
        return asked | {"changed attributes": ", ".join(changed) or "none"}

    def _changed_values(self) -> list[str]:
        """The attributes that somebody has changed since the first capture, with plain values."""
        then, now = self._values_at_first, self.values()
        changed = (name for name in sorted({**then, **now}) if then.get(name) != now.get(name))
        return [f"{name}={plain_text(now.get(name))}" for name in changed]

    def _forget_stale(self) -> None:
        check_global_hooks()
        check_function_modes()
        self._forget_stale_firsts()
        # `load_state_dict(assign=True)` gives the model other tensors, and `half()` other buffers.
        if _identities(self._tensors()) != _identities(self._tensors_then):
            self._made.clear()
        then, now = self._values_then, self.values()
        changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if changed and self._made:
            logger.warning(
                "%s has changed since the model was captured, so it is captured again. Where that "
                "happens often, keep the value in a buffer and write to it in place",
                ", ".join(map(repr, sorted(changed)[:3])),
            )
            self._made.clear()

    @property
    def draws_as_plain_torch(self) -> bool:
        """Whether it is known of all random nodes how many numbers they draw."""
        return all(staged.advances is not None for staged in self._made.values())

    def setting(self, training: bool) -> Setting:
        """The part of a key that is the same for all micro-batches: looked up once per batch."""
        modes = self._modes(training)
        hooks = tuple(Same(hook) for x in self._model.modules() for hook in module_hooks_of(x))
        # A checkpoint that needs no gradient runs once, else twice; and a forward may do without
        # gradients while its parameters need none, or ask whether they do.
        is_asked = training or (self._fixed is not None and self._fixed.names("requires_grad"))
        trained = tuple(x.requires_grad for x in self._model.parameters()) if is_asked else ()
        default = torch.get_default_dtype()
        return Setting(training, modes, trained, hooks, autocast_here(), default)

    def _modes(self, training: bool) -> Any:
        """The mode of each module, as far as it is not the usual one.

        To infer, a model in training mode is switched by its `eval()` when it is captured.
        """
        modes = [module.training for module in self._model.modules()]
        if training and not any(modes) and not self._is_told:
            self._is_told = True
            logger.warning(
                "the model is in eval mode, and trains in it as in plain torch, without dropout: "
                "call model.train() before, if that is not meant"
            )
        if training or not modes[0]:
            is_usual = all(modes) if training else not any(modes)
            return () if is_usual else tuple(modes)
        return "switched" if any(map(switches_itself, self._model.modules())) else ()

    def _forget_stale_firsts(self) -> None:
        stale = [first for first in self._firsts() if first.undo_if_stale()]
        if stale:
            self._made.clear()

    def _firsts(self) -> list[FirstCall]:
        return [staged.first for staged in self._made.values() if staged.first is not None]

    def _tensors(self) -> list[tuple[Tensor, torch.dtype]]:
        return [(x, x.dtype) for x in (*self._model.parameters(), *self._model.buffers())]


def switches_itself(module: nn.Module) -> bool:
    """Whether a module has a `train` or `eval` of its own."""
    kind, plain = type(module), nn.Module
    held = vars(module).keys() & {"train", "eval"}
    return bool(held) or kind.train is not plain.train or kind.eval is not plain.eval


def _identities(tensors: list[tuple[Tensor, torch.dtype]]) -> list[tuple[int, torch.dtype]]:
    return [(id(x), kind) for x, kind in tensors]
