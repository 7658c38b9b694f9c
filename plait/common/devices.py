"""What a device is good at."""

import torch


def is_fast_in_bfloat16(device: str) -> bool:
    """Say whether a kind of device ("cpu", "cuda") has instructions for products in bfloat16.

    Without them products are right but slow: on a CPU that ends at AVX2 ten to fifty times as slow as in float32, on
    a GPU before Ampere slower as well.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # oneDNN takes any x86 with AVX-512, and without these instructions computes in float32 and rounds
    return torch.cpu._is_avx512_bf16_supported() or not torch.cpu._is_avx2_supported()
