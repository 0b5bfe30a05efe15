"""What `partition` has verified of a pipeline, as the pipeline tells it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Verified:
    """What a pipeline's stages were compared with plain torch in; print it to see a sentence.

    Attributes:
        tensors: how many tensors of each kind were compared, such as `{"gradients": 199}`; none
            where nothing was.
        largest: the largest difference, in parts of that tensor's largest number; 0 means equal to
            the last bit.
        where: which tensor that is.
        remark: what was not verified, and why; empty if all was.
        inference: the same of inference, where the pipeline was made for training.
    """

    tensors: Mapping[str, int] = field(default_factory=dict)
    largest: float = 0.0
    where: str = ""
    remark: str = ""
    inference: "Verified | None" = None

    def joined(self, other: "Verified") -> "Verified":
        """Both, with the remark of the other."""
        worse = max(self, other, key=lambda one: one.largest)
        tensors = {**self.tensors, **other.tensors}
        return Verified(tensors, worse.largest, worse.where, other.remark)

    def __str__(self) -> str:
        inference = "" if self.inference is None else f"; in inference: {self.inference._said}"
        return ("verified against plain torch: " if self.tensors else "") + self._said + inference

    @property
    def _said(self) -> str:
        if not self.tensors:
            return f"not verified: {self.remark}"
        counts = ", ".join(f"{kind} ({count})" for kind, count in self.tensors.items())
        digits = "equal to the last bit"
        if self.largest:
            digits = f"equal to {self.largest:.0e} of the largest number ({self.where})"
        remark = f"; not verified: {self.remark}" if self.remark else ""
        return f"{counts}, {digits}{remark}"


AT_FIRST_CALL = Verified(remark="its first call will be")
"""Of inference, before there was any."""
