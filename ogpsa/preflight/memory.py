"""Peak memory of one training process, from the model's sizes and the settings alone.

The formulas hold for decoders of Llama's kind (RMSNorm, rotary positions, gated MLP) and are measured against
real peaks by ``benchmarks/memory.py``, but for GRPO's generation, its judges and NSPO's bases, which follow from their
shapes alone. Needs nothing heavy. All sizes are bytes; 1 GB is 1e9.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ogpsa.config import Mode, Optimizer
from ogpsa.subspace.settings import BasisDevice, BasisDtype
from ogpsa.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARDING_WEIGHTS: tuple[Mode, ...] = ("fsdp2", "zero3")

GB = 1e9
# Bytes per element: one fp32 scale for each block of 64 int8 elements; bitsandbytes' two int8 moments with an fp32
# scale for each block of 256.
BASIS_BYTES: dict[BasisDtype, float] = {"fp32": 4, "bf16": 2, "int8": 1 + 4 / 64}
EIGHT_BITS = 2 * (1 + 4 / 256)
STATE_BYTES: dict[Optimizer, float] = {
    "adamw": 8, "adamw_8bit": EIGHT_BITS, "paged_adamw_8bit": EIGHT_BITS, "sgd": 0,
}  # fmt: skip
# bitsandbytes pages the moments of tensors of at least this many elements.
PAGED_FROM = 100_000
# nf4: half a byte, an 8-bit scale for each block of 64, and an fp32 one for 256 of those.
NF4_BYTES = 1 / 2 + (1 + 4 / 256) / 64
# Tensors that TRL's offloading keeps on the device until their copies have left it, and the one in use.
STASHED = 6
# TRL's fused output head works through tiles of this many tokens and words.
TILE_TOKENS, TILE_WORDS = 4096, 32768
# DeepSpeed's: elements that are reduced at once, and that ZeRO-3 keeps gathered at most.
REDUCE_BUCKET, LIVE_PARAMETERS = 50_000_000, 1_000_000_000
# Under which configurations count a block's experts.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# In the names of peft's parameters, of LoRA and of OSF.
ADAPTERS = ("lora_", "osf_svd_params")
# Elements that ``ogpsa/projection.py`` turns into fp64 at once.
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 20}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in elements.

    Attributes:
        elements: of parameters and buffers.
        trained: parameters that are trained; ``trained_head``, ``trained_embedding``: whether these are among them.
        largest: the largest trained tensor; ``paged``: trained elements in tensors large enough for paged moments.
        head: the output head.
        block: parameters of one transformer block, without adapters; ``matrices``: of them those that autocast casts.
        adapted: summed input widths of a block's linear layers that carry an adapter; None without adapters.
        magnitudes: summed output widths of those that carry DoRA's.
    """

    parameters: int
    elements: int
    trained: int
    block: int
    matrices: int
    head: int
    largest: int
    paged: int
    trained_head: bool
    trained_embedding: bool
    adapted: int | None
    magnitudes: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int

    @property
    def merging(self) -> float:
        """Bytes of host memory in which adapters are merged: the model and all that they hold of it, in fp32."""
        return 4 * self.elements


@dataclass(frozen=True)
class Setup:
    """The part of a stage's training that decides its memory.

    Attributes:
        rows: of a micro-batch; ``pairs``: each is a chosen and a rejected sequence (DPO).
        length: tokens of a sequence; ``padded``: whether some are shorter, so that attention needs a mask.
        accumulates: whether an optimizer step, ``reference_accumulates``: a reference chunk, has several micro-batches.
        offloads: whether what is saved for the backward pass waits on the host.
        autocast: bf16 autocast; ``weight_bytes``: of one frozen or trained weight in storage; ``quantized``: whether
            the blocks' frozen matrices are stored in 4 bits.
        rank: columns of the basis (r); ``references``: reference gradients (m ≥ r); 0 and 0 without a projection.
        streamed_sums: running sums of each streamed reference: 2, or 1 where every step takes all samples.
        extra_bytes: kept for each trained weight, sharded as the weights are (``Method.memory``).
        generated: sequences of ``length`` that one process generates at once (GRPO).
        prompt: how many tokens of each such sequence are its prompt's.
        frozen_copy: whether a second model is kept that is not trained: where the stage started.
        whole_bytes: kept whole on every process, ``host_bytes``: on its host (``Method.memory``).
        answers_first: whether a step of GRPO begins with answers (``Method.memory``).
        judge_bytes: weights of the judges that reward GRPO's completions, whole on the main process.
        device: where it runs; ``cpu`` differs in temporaries.
        output_head: ``fused`` in tiles (TRL), or ``full``, which holds the logits of all tokens.
    """

    rows: int
    length: int
    pairs: bool = False
    mode: Mode = "single"
    processes: int = 1
    padded: bool = True
    accumulates: bool = True
    reference_accumulates: bool = True
    checkpointing: bool = False
    offloads: bool = False
    autocast: bool = False
    weight_bytes: int = 4
    quantized: bool = False
    attention: str = "sdpa"
    optimizer: Optimizer = "adamw"
    rank: int = 0
    references: int = 0
    basis_dtype: BasisDtype = "auto"
    basis_device: BasisDevice = "device"
    streamed_sums: int = 0
    extra_bytes: float = 0.0
    generated: int = 0
    prompt: int = 0
    frozen_copy: bool = False
    whole_bytes: float = 0.0
    host_bytes: float = 0.0
    answers_first: bool = False
    judge_bytes: float = 0.0
    device: Literal["cuda", "cpu"] = "cuda"
    output_head: Literal["fused", "full"] = "fused"

    @property
    def sequences(self) -> int:
        return self.rows * (2 if self.pairs else 1)


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, and of host memory per process.

    Attributes:
        communication: buckets and gathered weights.
        basis: on the device; ``host``: the basis, or the rows of a refresh, paged moments and offloaded activations.
        streams: the running sums of streamed references.
        references: rows that a refresh holds in the basis's place.
        orthonormalization: what making a basis of them takes beyond.
        activations: what one micro-batch holds at its peak; ``last_activations``: when the gradients are complete.
        answers: the same two of a micro-batch of references or replayed answers.
        temporaries: of the optimizer's step.
        generation: keys and values of the sequences that are generated at once, or those of their prompts while a block
            reads these, all in one pass.
        setup: what it is of, which decides the moments.
    """

    weights: float
    gradients: float
    optimizer: float
    communication: float
    basis: float
    host: float
    streams: float
    references: float
    orthonormalization: float
    activations: float
    last_activations: float
    answers: tuple[float, float]
    temporaries: float
    generation: float
    setup: Setup = field(compare=False)

    @property
    def moments(self) -> dict[str, float]:
        """Bytes on the device at the moments that can be the highest."""
        kept = self.weights + self.optimizer + self.communication + self.streams

        def backward(accumulates: bool, activations: float, last_activations: float) -> float:
            before = self.gradients if accumulates else 0
            return max(before + activations, self.gradients + last_activations)

        setup = self.setup
        accumulates = setup.accumulates or setup.answers_first
        moments = {
            "backward": kept + self.basis + backward(accumulates, self.activations, self.last_activations),
            "optimizer step": kept + self.basis + self.gradients + self.temporaries,
        }
        if self.generation:
            moments["generation"] = kept + self.basis + self.generation + setup.answers_first * self.gradients
        if setup.answers_first:
            moments["answers"] = kept + self.basis + backward(True, *self.answers)
        if self.streams:
            moments["streaming"] = kept + backward(setup.reference_accumulates, *self.answers)
        elif setup.references:
            moments["refresh"] = kept + self.references + backward(setup.reference_accumulates, *self.answers)
        if setup.references:
            moments["estimate"] = kept + self.references + self.orthonormalization
        return moments

    @property
    def peak(self) -> float:
        return max(self.moments.values())

    @property
    def peak_moment(self) -> str:
        return max(self.moments, key=self.moments.__getitem__)


def estimate(shape: ModelShape, setup: Setup) -> Estimate:
    """Peak memory of one process.

    Per trained parameter: fp32 weight 4, gradient 4, AdamW 8 (8-bit 2, SGD 0), basis r × its bytes. ZeRO-2 and
    ZeRO-3 keep an fp32 master copy in addition to the weights. Gradients, optimizer and basis are divided by the
    processes in fsdp2, zero2 and zero3, weights in fsdp2 and zero3.
    """
    gradient_shards = setup.processes if setup.mode in (*SHARDING_WEIGHTS, "zero2") else 1
    weight_shards = setup.processes if setup.mode in SHARDING_WEIGHTS else 1
    trained = shape.trained / gradient_shards
    # Each process makes its own piece of the basis.
    largest = shape.largest / gradient_shards
    frozen = shape.parameters - shape.trained
    master = 4 * trained if setup.mode in ("zero2", "zero3") else 0
    dtype = setup.basis_dtype
    if dtype == "auto":
        dtype = "fp32" if setup.device == "cpu" else "bf16"
    basis = setup.rank * BASIS_BYTES[dtype] * trained + setup.whole_bytes
    # Streamed sums are fp32, and so are the rows that come of them; others are no wider than the basis needs.
    width = 4 if dtype == "fp32" or setup.streamed_sums else 2
    rows = setup.references * trained * width
    on_host = setup.basis_device == "host" and setup.device == "cuda"
    rows_on_host = on_host and not setup.streamed_sums
    activations, last, offloaded = _activations(shape, setup)
    # In GRPO answers pass through the model's own forward, which TRL's fused head is no part of unless asked.
    answers = _activations(shape, replace(setup, output_head="full"))[:2] if setup.generated else (activations, last)
    matrices = shape.layers * shape.matrices if setup.quantized else 0
    moments = STATE_BYTES[setup.optimizer] * trained + _whole_moments(shape, setup) / gradient_shards
    paged = moments * shape.paged / shape.trained if setup.optimizer == "paged_adamw_8bit" else 0.0
    # Adapters are switched off instead.
    copy = 4 * shape.parameters / weight_shards if setup.frozen_copy and shape.adapted is None else 0
    computed = 2 if setup.autocast or setup.weight_bytes == 2 else 4
    # The residual stream, where it is in fp32 under autocast, makes the cache fp32 through the rotary embedding.
    cached = 2 * _stream_bytes(setup) * shape.layers * shape.key_value_heads * shape.head_dim
    # Three widths of the MLP, the residual stream and what the block adds to it.
    block = computed * (3 * shape.intermediate + 2 * shape.hidden)
    generation = setup.generated * max(setup.length * cached, setup.prompt * (cached + block))
    temporaries = 0.0
    if setup.optimizer == "adamw":
        # torch's default on a GPU takes one root over all parameters at once, on a CPU tensor by tensor.
        temporaries = 4 * trained if setup.device == "cuda" else 8 * min(shape.largest, trained)
    elif paged:
        # The tensor that is stepped is on the device.
        temporaries = min(STATE_BYTES["adamw"] * largest, paged)
    return Estimate(
        weights=(
            setup.weight_bytes * (frozen - matrices) + NF4_BYTES * matrices + (4 + setup.extra_bytes) * shape.trained
        )
        / weight_shards
        + master
        + copy
        + setup.judge_bytes,
        gradients=4 * trained,
        optimizer=moments - paged,
        communication=_communication(shape, setup),
        basis=0 if on_host else basis,
        host=max(basis if on_host else 0, rows if rows_on_host else 0) + paged + offloaded + setup.host_bytes,
        streams=setup.streamed_sums * rows,
        references=0 if rows_on_host else rows,
        # Pieces of one parameter's rows in fp64, and its rows once more.
        orthonormalization=setup.references * (16 * min(CHUNK[setup.device], largest) + width * largest),
        activations=activations,
        last_activations=last,
        answers=answers,
        temporaries=temporaries,
        generation=generation,
        setup=setup,
    )


def _whole_moments(shape: ModelShape, setup: Setup) -> float:
    """Bytes of the embedding's moments beyond 8 bits: transformers keeps them in fp32."""
    if STATE_BYTES[setup.optimizer] != EIGHT_BITS or not shape.trained_embedding:
        return 0.0
    return (STATE_BYTES["adamw"] - EIGHT_BITS) * shape.vocabulary * shape.hidden


def _activations(shape: ModelShape, setup: Setup) -> tuple[float, float, float]:
    """Bytes that a micro-batch holds at its peak, when the backward pass has reached the first block, and on the host.

    A block saves, per token, with h the width, q and k those of queries and keys, f that of the MLP and c
    bytes of the computation: two norms' inputs and normalised inputs; the inputs of the linear layers, which
    autocast casts again for each; queries, keys, values and the attention's output; three or four widths of
    the MLP. Checkpointing saves the block's input alone, and one whole block at a time is rebuilt. A matrix in 4 bits
    is unpacked while it is used and never saved. DoRA saves each layer's two outputs, and takes the norms of the
    matrices' rows, for which it makes three of them.
    """
    tokens = setup.sequences * setup.length
    computed = 2 if setup.autocast or setup.weight_bytes == 2 else 4
    stream = _stream_bytes(setup)
    cast = setup.autocast and stream == 4 and not setup.quantized
    block = _block_bytes(shape, setup, tokens, computed, stream)
    copies = 2 * shape.matrices if cast else 0
    inputs = stream * shape.hidden * tokens
    final = (4 + stream + 4) * shape.hidden * tokens
    # The gradients of two of the MLP's widths and of the residual stream.
    transient = tokens * (2 * shape.intermediate * computed + stream * shape.hidden)
    matrix = shape.hidden * shape.intermediate
    transient += (computed * matrix if setup.quantized else 0) + (3 * 4 * matrix if shape.magnitudes else 0)
    saved: float = shape.layers * inputs
    held = 0
    if setup.checkpointing:
        # While the forward pass lasts, autocast keeps the copy of every trained weight that it has cast.
        held = shape.layers * copies if shape.adapted is None else 0
        rebuilt = block + copies + transient - inputs
    else:
        saved = shape.layers * (block + copies)
        rebuilt = transient
    offloaded = 0.0
    if setup.offloads:
        whole = saved
        # Without checkpointing the tensors are parts of blocks, of which one is counted whole.
        saved = min(whole, STASHED * inputs if setup.checkpointing else block + copies)
        offloaded = whole - saved
    forward, backward = _output_head(shape, setup, tokens, computed)
    peak = max(saved + final + held + forward, saved + final + backward, saved + rebuilt)
    return peak, rebuilt + (inputs if setup.checkpointing else block + copies), offloaded


def _stream_bytes(setup: Setup) -> int:
    """Bytes of a number in the residual stream."""
    # FSDP2 hands bf16 weights to autocast, so that the residual stream is bf16 as well.
    return 2 if setup.weight_bytes == 2 or (setup.autocast and setup.mode == "fsdp2") else 4


def _block_bytes(shape: ModelShape, setup: Setup, tokens: int, computed: int, stream: int) -> float:
    """Bytes that one block saves for its backward pass."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    # Each with its input in fp32 and one number per token; frozen weights need no normalised input.
    norms = 2 * ((4 if shape.adapted is not None else 4 + stream) * hidden + 4)
    if shape.adapted is not None:
        linear = computed * shape.adapted
    elif setup.autocast and stream == 4:
        linear = 5 * computed * hidden
    else:
        linear = 2 * computed * hidden
    masked = setup.padded and setup.attention == "sdpa"
    # A mask rules out the kernels that share a key between queries, and is kept for each block.
    shared = not masked and setup.attention != "eager"
    attention = computed * 2 * (queries + (keys if shared else queries)) + (computed * setup.length if masked else 0)
    if setup.attention == "eager":
        attention += shape.heads * setup.length * (4 if computed == 4 else 6)
    else:
        attention += 4 * shape.heads
    linear += computed * 2 * shape.magnitudes
    # The product that enters the last matrix is needed where that is trained; an adapter's is in ``adapted``.
    widths = 4 if shape.adapted is None else 3
    return tokens * (norms + linear + attention + computed * widths * shape.intermediate)


def _output_head(shape: ModelShape, setup: Setup, tokens: int, computed: int) -> tuple[float, float]:
    """Working memory of the output head and the loss in the forward and in the backward pass."""
    gradient = 4 * shape.head if shape.trained_head else 0
    if setup.output_head == "full":
        logits = tokens * shape.vocabulary
        cast = 2 * shape.head if computed < setup.weight_bytes else 0
        return (8 + (2 if computed == 2 else 0)) * logits + cast, 12 * logits + cast
    # The last position predicts nothing.
    predicted = tokens - setup.sequences
    words = min(shape.vocabulary, TILE_WORDS)
    tile_tokens = min(predicted, TILE_TOKENS)
    cast = words * shape.hidden * computed if computed < setup.weight_bytes else 0
    tile = tile_tokens * TILE_WORDS * computed + cast
    # Without Triton the tile's statistics are whole fp32 tensors.
    forward = tile + (3.25 * 4 * tile_tokens * words if setup.device == "cpu" else 0)
    backward = tile + (7.25 * 4 * tile_tokens * words if setup.device == "cpu" else 0)
    return forward, backward + 4 * predicted * shape.hidden + gradient


def _communication(shape: ModelShape, setup: Setup) -> float:
    """Buckets and gathered weights, beyond what is kept."""
    outside = shape.parameters - shape.layers * shape.block
    if setup.mode == "ddp":
        return 4 * shape.trained
    if setup.mode == "fsdp2":
        travel = 2 if setup.autocast else setup.weight_bytes
        # Gathered: what lies outside the blocks, two blocks, and the head once more for TRL's loss; then the gradients
        # of a block, or of the embeddings, before they are scattered.
        gathered = travel * (outside + 2 * shape.block + shape.head)
        whole = max(shape.block, shape.head) if shape.trained_head else shape.trained // shape.layers
        return gathered + (4 * whole if shape.adapted is None else 0)
    if setup.mode == "zero2":
        return 4 * min(REDUCE_BUCKET, shape.trained)
    if setup.mode == "zero3":
        return setup.weight_bytes * min(LIVE_PARAMETERS, outside + 2 * shape.block) + 4 * min(
            REDUCE_BUCKET, shape.trained
        )
    return 0


def shape_of(model: "PreTrainedModel", adapted: int | None = None, magnitudes: int = 0) -> ModelShape:
    """Sizes of a causal language model, which may be on the meta device.

    Args:
        adapted, magnitudes: see ``ModelShape``; the model then is the one inside the adapters, or the base itself.

    Raises:
        UserError: its configuration does not describe a decoder of Llama's kind, or one with several experts.
    """
    from ogpsa.models.text import language_model

    facts = model.config.get_text_config().to_dict()
    wanted = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    absent = [name for name in wanted if not isinstance(facts.get(name), int)]
    if absent:
        raise UserError(
            f"model.path: {facts['model_type']} has no {absent[0]} in its configuration; preflight knows decoders such "
            "as Llama, Qwen2 and Mistral"
        )
    for name in EXPERTS:
        if (facts.get(name) or 0) > 1:
            raise UserError(
                f"model.path: {facts['model_type']} is a mixture of experts ({name}={facts[name]}); preflight knows "
                "decoders with one MLP in a block, such as Llama, Qwen2 and Mistral"
            )
    parameters = dict(model.named_parameters())
    named = language_model(model).named_parameters()
    base = {name: p for name, p in named if not any(part in name for part in ADAPTERS)}
    blocks = [p for name, p in base.items() if any(part.isdecimal() for part in name.split("."))]
    trained = [p for p in parameters.values() if p.requires_grad]
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().get_parameter("weight")
    heads, hidden, layers = facts["num_attention_heads"], facts["hidden_size"], facts["num_hidden_layers"]
    return ModelShape(
        parameters=sum(p.numel() for p in parameters.values()),
        elements=sum(tensor.numel() for tensor in (*parameters.values(), *model.buffers())),
        trained=sum(p.numel() for p in trained),
        trained_head=head.requires_grad,
        trained_embedding=embedding.requires_grad,
        largest=max(p.numel() for p in trained),
        paged=sum(p.numel() for p in trained if p.numel() >= PAGED_FROM),
        head=head.numel(),
        block=sum(p.numel() for p in blocks) // layers,
        matrices=sum(p.numel() for p in blocks if p.dim() > 1) // layers,
        adapted=adapted,
        magnitudes=magnitudes,
        layers=layers,
        hidden=hidden,
        intermediate=facts["intermediate_size"],
        heads=heads,
        key_value_heads=facts.get("num_key_value_heads") or heads,
        head_dim=facts.get("head_dim") or hidden // heads,
        vocabulary=facts["vocab_size"],
    )
