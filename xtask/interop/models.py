"""Small random models of the family, as transformers makes them."""

import torch
from transformers import NemotronHConfig, NemotronHForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

LAYERS = {"M": "mamba", "-": "mlp", "*": "attention"}


def config(pattern="M-*M-", **changes):
    values = dict(
        vocab_size=256,
        hidden_size=64,
        layers_block_type=[LAYERS[kind] for kind in pattern],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        ssm_state_size=32,
        chunk_size=16,
        max_position_embeddings=512,
        use_mamba_kernels=False,
    )
    values.update(changes)
    return NemotronHConfig(**values)


def save(folder, settings, dtype=torch.float32, seed=0, **options):
    """Writes a random model; matrices large enough that every layer matters."""
    torch.manual_seed(seed)
    model = NemotronHForCausalLM(settings).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.08)
    model.save_pretrained(folder, **options)
    return model


def load(folder):
    model = NemotronHForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits.float()
