"""The ``model`` group."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ogpsa.config.section import PathText, Section
from ogpsa.config.stage import Training

# A kernel of the hub's collection that transformers trusts, perhaps at a revision.
HubKernel = Annotated[str, Field(pattern=r"^kernels-community/[A-Za-z0-9_.-]+(@[A-Za-z0-9_.-]+)?$")]


Precision = Literal["fp32", "bf16"]


class BaseTraining(Section):
    """Training of the testbed's base model from scratch (``ogpsa/testbed/base.py``)."""

    seed: int = Field(default=0, ge=0)
    hidden_size: int = Field(ge=8, multiple_of=4)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    accuracy: float = Field(default=0.0, ge=0, le=1)
    max_cycles: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "BaseTraining":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of twice heads={self.heads}")
        return self


class VisionTower(Section):
    """The part of a model that reads images, by the names in ``config.json``.

    Attributes:
        inside: ``model_type`` of the whole model.
    """

    inside: Literal["gemma3"]
    model_type: Literal["siglip_vision_model"]
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    image_size: int = Field(ge=1)
    patch_size: int = Field(ge=1)
    vision_use_head: bool


class Architecture(Section):
    """The values of a model's ``config.json`` that determine its size, by transformers' names.

    Attributes:
        of: the hub id that has it.
        vision: the image part of a model that also reads images; the other values then describe its text part.
    """

    of: str
    model_type: Literal["gemma3_text", "llama", "olmo3", "qwen2", "qwen3", "smollm3"]
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    # Default: hidden_size / num_attention_heads.
    head_dim: int | None = Field(default=None, ge=1)
    vocab_size: int = Field(ge=1)
    tie_word_embeddings: bool
    max_position_embeddings: int = Field(ge=1)
    vision: VisionTower | None = None

    def described(self) -> dict[str, Any]:
        """Arguments of transformers' ``AutoConfig.for_model``."""
        text = self.model_dump(exclude={"of", "vision"}, exclude_none=True)
        if self.vision is None:
            return text
        vision = self.vision.model_dump()
        return {"model_type": vision.pop("inside"), "text_config": text, "vision_config": vision}


class LocalCopy(Section):
    """A folder that replaces the hub's files if it exists.

    Attributes:
        of: the hub id that it replaces; another ``model.path``, or one at a pinned revision, is unaffected.
        path: the folder.
    """

    of: str
    path: PathText = Field(min_length=1)


class StageRecipe(Training):
    """One stage's training settings for one model; ``conf/stage`` reads them from here."""

    adapter_learning_rate: float = Field(gt=0)


class GRPORecipe(StageRecipe):
    num_generations: int = Field(ge=2)
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)


class Recipe(Section):
    sft: StageRecipe
    dpo: StageRecipe
    grpo: GRPORecipe | None = None


class Model(Section):
    """The model to align: a hub id or a local folder, or (``path: null``) the testbed's own base."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    path: PathText | None = Field(min_length=1)
    revision: str | None = Field(min_length=1)
    attention: Literal["eager", "sdpa", "flash_attention_2"] | HubKernel
    precision: Precision
    dtype: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    activation_offload: bool = False
    compile: bool = False
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    base: BaseTraining | None
    architecture: Architecture | None = None
    local_copy: LocalCopy | None = None
    recipe: Recipe

    @model_validator(mode="after")
    def _has_a_source(self) -> "Model":
        if self.path is None and self.base is None:
            raise ValueError("model.path is null and model.base holds no recipe for a testbed base: give a path")
        return self
