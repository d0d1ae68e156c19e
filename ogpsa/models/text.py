"""The part of a model that text passes through: of one that also reads images, its language model and output head."""

from torch import nn
from transformers import PreTrainedModel


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that text passes through by name, without the output head."""
    head, reached = model.get_output_embeddings(), _reached(model)
    return {name: one for name, one in _linear(model) if one is not head and one in reached}


def other_matrices(model: PreTrainedModel) -> dict[str, int]:
    """The sizes, by name, of the weight matrices that text passes through and that are neither linear layers',
    embeddings nor the output head, as those of fused experts.
    """
    layers, head, reached = linear_layers(model), model.get_output_embeddings(), _reached(model)
    return {
        f"{name}.{kind}".removesuffix(".weight"): weight.numel()
        for name, one in model.named_modules()
        if one in reached and name not in layers and one is not head and not isinstance(one, nn.Embedding)
        for kind, weight in one.named_parameters(recurse=False)
        if weight.dim() > 1
    }


def missed_layers(model: PreTrainedModel) -> list[str]:
    """The names of the linear layers that no text passes through; none in a model that reads text alone."""
    reached = _reached(model)
    return [name for name, one in _linear(model) if one not in reached]


def freeze_what_text_misses(model: PreTrainedModel) -> None:
    """Take what no text passes through out of training: it has no gradient, and keeps its weights."""
    reached = {parameter for module in _reached(model) for parameter in module.parameters(recurse=False)}
    for parameter in model.parameters():
        if parameter not in reached:
            parameter.requires_grad_(False)


def language_model(model: PreTrainedModel) -> nn.Module:
    """The decoder inside a model that also reads images; any other model is one as a whole."""
    if model.config.get_text_config() is model.config:
        return model
    decoder: nn.Module = model.get_decoder()
    return decoder


def _linear(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    return [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear)]


def _reached(model: PreTrainedModel) -> set[nn.Module]:
    return {*language_model(model).modules(), model.get_output_embeddings()}
