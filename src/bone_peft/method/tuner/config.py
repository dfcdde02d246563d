"""``BoneConfig``: what a user asks for, checked at once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from peft.config import PeftConfig
from peft.utils import PeftType

from bone_peft.errors import BoneError

from ..variants import VARIANTS, Variant, variant_of

_BIAS = ("none", "all", "bone_only")


@dataclass
class BoneConfig(PeftConfig):
    """Configuration of a :class:`BoneModel`.

    The variant follows from the options:

    - ``init_weights=True`` or ``False``: **Bone**.
    - ``init_weights="bat"``: **Bat**, with one block per block row of the weight.
    - ``init_weights="bat", share="input"``: **input-shared Bat**, with one block per block column.
    - ``bottleneck_size=...``: **Bottleneck**.

    Args:
        r: block size (paper: ``r``). Default 64. Bat needs it to divide both sides of every target weight.
        init_weights: ``True`` starts at ``dW = 0``; ``False`` starts at random values (for tests); ``"bat"`` selects
            Bat, which starts at ``dW = 0``.
        share: which side of the weight the blocks of Bat are shared over, ``"output"`` (default; PEFT's Bat) or
            ``"input"`` (RWKV-PEFT's Bat).
        bone_dropout: probability in ``[0, 1)`` of dropping an element of the adapter's input. Default 0.
        bottleneck_size: base width of the bottleneck.
        bottleneck_alpha: the bottleneck is ``round(bottleneck_size * bottleneck_alpha)`` wide. Default 1.
        bottleneck_dropout: as ``bone_dropout``, for the bottleneck. Default 0.
        target_modules: names, name endings, a regular expression, or ``"all-linear"``. Left out, it follows the
            model's architecture, as for LoRA.
            The names of a dense MLP (``gate_proj``, ``up_proj``, ``down_proj``) mean its experts too.
        target_parameters: names or name endings of parameters: of experts (``"experts.gate_up_proj"``), or a linear
            layer's ``"q_proj.weight"``. With it, ``target_modules`` may be left out.
        experts: ``"each"`` (default): an adapter for each expert; ``"shared"``: one for all experts of a layer.
        exclude_modules: names, name endings or a regular expression of modules to leave alone.
        rank_pattern: another ``r`` (for Bottleneck: another ``bottleneck_size``) by module name or regular expression.
        bias: ``"none"``, ``"all"`` or ``"bone_only"``: which bias vectors are trained.
        modules_to_save: modules to train and save whole, beside the adapter.
        ensure_weight_tying: keep tied embeddings one weight when an end of them is in ``modules_to_save``.
        layers_to_transform: index or indices of the layers to adapt.
        layers_pattern: name of the list of layers that those indices count.

    Raises:
        BoneError: if a value is out of range, or options of two variants are mixed.
    """

    r: int | None = field(default=None, metadata={"help": "Block size. Default 64."})
    init_weights: bool | Literal["bat"] = field(
        default=True,
        metadata={"help": "True: dW starts at zero. False: random values. 'bat': the Bat variant."},
    )
    share: Literal["output", "input"] | None = field(
        default=None,
        metadata={"help": "Side of the weight that Bat's blocks are shared over. Default 'output'."},
    )
    bone_dropout: float | None = field(default=None, metadata={"help": "Dropout on the adapter's input."})
    bottleneck_size: int | None = field(default=None, metadata={"help": "Base width of the Bottleneck variant."})
    bottleneck_alpha: float | None = field(
        default=None, metadata={"help": "The bottleneck is round(bottleneck_size * bottleneck_alpha) wide."}
    )
    bottleneck_dropout: float | None = field(default=None, metadata={"help": "Dropout on the bottleneck's input."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, a regular expression or 'all-linear'."}
    )
    target_parameters: list[str] | None = field(
        default=None, metadata={"help": "Names of parameters, such as 'experts.gate_up_proj'."}
    )
    experts: Literal["each", "shared"] = field(
        default="each", metadata={"help": "'each': an adapter for each expert. 'shared': one for all of a layer."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names or a regular expression of modules to leave alone."}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Another r (or bottleneck_size) by module name."}
    )
    bias: str = field(default="none", metadata={"help": "'none', 'all' or 'bone_only'."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train and save whole, beside the adapter."}
    )
    ensure_weight_tying: bool = field(
        default=False, metadata={"help": "Keep tied embeddings one weight when modules_to_save names an end of them."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Index or indices of the layers to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers that layers_to_transform counts."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("BONE")
        self.rank_pattern = self.rank_pattern or {}
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        self._check_choices()
        self._fill_defaults(self.variant)
        self._check_numbers(self.variant)

    @property
    def variant(self) -> type[Variant]:
        """The variant that the options select."""
        try:
            return variant_of(self)
        except LookupError:
            raise BoneError(
                f"bottleneck_size={self.bottleneck_size} and init_weights={self.init_weights!r} ask for two variants "
                "at once: leave one of them out."
            ) from None

    def layer_size(self, base_size: int | None = None) -> int:
        """The size of a layer's tensors, from the value that ``rank_pattern`` gives it, if any."""
        variant = self.variant
        return variant.size(self, base_size or getattr(self, variant.size_field))

    def _check_choices(self) -> None:
        _one_of("init_weights", self.init_weights, (True, False, "bat"))
        _one_of("share", self.share, (None, "output", "input"))
        _one_of("experts", self.experts, ("each", "shared"))
        _one_of("bias", self.bias, _BIAS)
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                raise BoneError(f"{name} cannot be used when target_modules is a string: give a list of names.")

    def _fill_defaults(self, variant: type[Variant]) -> None:
        """Give the variant's own options their defaults; refuse options of another variant."""
        owners: dict[str, list[str]] = {}
        for other in VARIANTS.values():
            for name in other.options:
                owners.setdefault(name, []).append(other.name)
        for name, names in owners.items():
            if name in variant.options:
                if getattr(self, name) is None:
                    setattr(self, name, variant.options[name])
            elif getattr(self, name) is not None:
                raise BoneError(
                    f"{name}={getattr(self, name)!r} belongs to {', '.join(names)}, but the other options select "
                    f"{variant.name}, which takes {', '.join(variant.options)}: leave out one or the other."
                )

    def _check_numbers(self, variant: type[Variant]) -> None:
        sizes: dict[str, Any] = {variant.size_field: getattr(self, variant.size_field)}
        sizes |= {f"rank_pattern[{key!r}]": value for key, value in self.rank_pattern.items()}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise BoneError(f"{name} has to be a whole number of at least 1, and it is {value!r}.")
        alpha = getattr(self, "bottleneck_alpha", None)
        if alpha is not None and not alpha > 0:
            raise BoneError(f"bottleneck_alpha has to be above 0, and it is {alpha!r}.")
        dropout = getattr(self, variant.dropout_field)
        if not 0 <= dropout < 1:
            raise BoneError(f"{variant.dropout_field} has to be at least 0 and below 1, and it is {dropout!r}.")


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
        raise BoneError(f"{name} has to be one of {', '.join(map(repr, choices))}, and it is {value!r}.")


CONFIG_FIELDS = frozenset(f.name for f in fields(BoneConfig))
