"""Core ML packages. They are written and read anywhere, but run on macOS only."""

import json
from collections import Counter
from typing import Any

import coremltools
import torch
from torch import Tensor

from .programs import ExportJob, as_tuple, list_input_names, list_output_names

DTYPES = ('float32', 'float16')
DYNAMIC = frozenset()


def write(job: ExportJob) -> None:
    """Write an ML program; see :func:`mmevit.deploy.export`."""
    names = list_output_names(job.network, len(as_tuple(job.network(*job.inputs))))
    model: Any = coremltools.convert(
        torch.jit.trace(job.network, job.inputs),
        inputs=[
            coremltools.TensorType(name, tensor.shape)
            for name, tensor in zip(list_input_names(job.network), job.inputs, strict=True)
        ],
        outputs=[coremltools.TensorType(name) for name in names],
        convert_to='mlprogram',
        compute_precision=getattr(coremltools.precision, job.dtype.upper()),
        minimum_deployment_target=coremltools.target.iOS16,
    )
    model.user_defined_metadata['mmevit'] = job.metadata
    model.save(str(job.path))


class Session:
    """A Core ML package, which runs on macOS only. macOS chooses the number of threads."""

    def __init__(self, path: str, num_threads: int) -> None:
        self.model = coremltools.models.MLModel(path)
        self.metadata = json.loads(self.model.user_defined_metadata.get('mmevit', '{}'))
        description = self.model.get_spec().description
        self.inputs = [feature.name for feature in description.input]
        self.outputs = [feature.name for feature in description.output]

    @property
    def operators(self) -> Counter[str]:
        """The number of operators of each type."""
        (function,) = self.model.get_spec().mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        return Counter(operation.type for operation in block.operations)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        arrays = {name: x.numpy() for name, x in zip(self.inputs, inputs, strict=True)}
        outputs = self.model.predict(arrays)
        return tuple(torch.from_numpy(outputs[name]) for name in self.outputs)
