"""Where the code of an exported folder begins; the library itself does not import this module.

transformers loads the student's classes from here, by `auto_map` in config.json. Kernels run where they are installed;
elsewhere, on CUDA too, all is plain PyTorch: whoever loads the folder has not chosen a backend.
"""

import torch
from transformers.utils import logging

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.models.modeling import GendistillForCausalLM, GendistillModel
from gendistill.ops import set_backend
from gendistill.ops.kernels import load_kernels

# Where such a model is saved again, transformers copies the file that a class says it is from, with all it imports.
for _class in (GendistillConfig, GendistillForCausalLM, GendistillModel):
    _class.__module__ = __name__

# Now, and not in the middle of the first reply, it shows whether there are kernels. Not on a CPU: importing fla takes
# Triton and seconds, for nothing.
if torch.cuda.is_available():
    try:
        load_kernels()
    except UserError as error:
        logging.get_logger(__name__).warning(
            f"Linear attention runs in plain PyTorch, slowly: {str(error).split('. ')[0]}. "
            'Kernels come with: pip install "fla-core>=0.6,<0.7"'
        )
        set_backend("plain")
