"""An extension of vLLM's workers, which vLLM loads by its name in its own processes."""

import logging
from typing import Any

# It warns of each layer without weights of its own (rotary embeddings, tied output layers), at each reload. Weights
# that are missing in the files are reported elsewhere.
_NOISY = "vllm.model_executor.model_loader.reload.layerwise"


class ReloadExtension:
    """Methods that vLLM adds to its workers (`worker_extension_cls`), called by `LLM.collective_rpc`."""

    model_runner: Any  # of vLLM's worker

    def reload_policy(self, folder: str) -> None:
        """Replace the model's weights by those of a folder in transformers' format."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        logging.getLogger(_NOISY).setLevel(logging.ERROR)
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):  # on CPUs one tied to the embedding keeps packed weights of its own
                layer.quant_method.process_weights_after_loading(layer)
