"""plait's models in Hugging Face's transformers: ``import plait.hf`` teaches its Auto classes what they are.

    from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

    import plait.hf

    pipe = pipeline("any-to-any", model="quickstart-model")
    pipe(text="a teapot on a blue background", generation_mode="image")[0]["generated_image"]

A folder that plait saved also carries ``modeling_plait.py``, by which ``trust_remote_code=True`` does the same.
"""

from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from plait.hf.config import PlaitConfig
from plait.hf.model import PlaitForMultimodalLM
from plait.hf.processor import PlaitProcessor

__all__ = ["PlaitConfig", "PlaitForMultimodalLM", "PlaitProcessor"]

AutoConfig.register(PlaitConfig.model_type, PlaitConfig, exist_ok=True)
AutoModelForMultimodalLM.register(PlaitConfig, PlaitForMultimodalLM, exist_ok=True)
AutoProcessor.register(PlaitConfig, PlaitProcessor, exist_ok=True)
