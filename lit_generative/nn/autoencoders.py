"""Pairs of encoder and decoder, by name."""

from functools import partial
from typing import Any, Literal

from lit_generative.nn.conv import CONV3, CONV4, ConvDecoder, ConvEncoder
from lit_generative.nn.mlp import MLPDecoder, MLPEncoder

Network = Literal["mlp", "conv", "conv3", "conv4"]
NETWORKS: dict[Network, Any] = {
    "mlp": (MLPEncoder, MLPDecoder),
    "conv": (ConvEncoder, ConvDecoder),
    "conv3": (partial(ConvEncoder, layout=CONV3), partial(ConvDecoder, layout=CONV3)),
    "conv4": (partial(ConvEncoder, layout=CONV4), partial(ConvDecoder, layout=CONV4)),
}
