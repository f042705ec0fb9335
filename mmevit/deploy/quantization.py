"""Integers of eight bits: ONNX files quantised with the activations of real images."""

import contextlib
import logging
import tempfile

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from mmevit.utils.files import atomic_write


def quantize(path, names, batches):
    """Quantise an ONNX file in place: convolutions and linear layers, channel by channel.

    Args:
        path (str | Path): The file, in float32.
        names (Sequence[str]): Names of its inputs.
        batches (Iterable[tuple[Tensor]]): Inputs to see.
    """
    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    with tempfile.TemporaryDirectory() as folder, atomic_write(path) as quantized:
        prepared = f'{folder}/prepared.onnx'
        with quiet():
            quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            str(quantized),
            Batches(names, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=['Conv', 'Gemm'],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=dict(ActivationSymmetric=False, WeightSymmetric=True),
        )
        model = onnx.load(quantized)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, quantized)


class Batches(CalibrationDataReader):
    """Batches as ONNX Runtime reads them.

    Args:
        names (Sequence[str]): Names of the inputs.
        batches (Iterable[tuple[Tensor]]): The inputs.
    """

    def __init__(self, names, batches):
        self.names, self.batches = names, iter(batches)

    def get_next(self):
        """Give the next batch, or None after the last."""
        batch = next(self.batches, None)
        if batch is None:
            return None
        return {name: part.numpy() for name, part in zip(self.names, batch, strict=True)}


@contextlib.contextmanager
def quiet():
    """Keep advice about other models than this out of the output."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
