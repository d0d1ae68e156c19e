"""The part of a model that text passes through: of one that also reads images, its language model and output head."""

from torch import nn
from transformers import PreTrainedModel


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that text passes through by name, without the output head."""
    head, reached = model.get_output_embeddings(), _reached(model)
    return {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and one is not head and one in reached
    }


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


def _reached(model: PreTrainedModel) -> set[nn.Module]:
    return {*language_model(model).modules(), model.get_output_embeddings()}
