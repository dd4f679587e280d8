"""Small models and a byte-level tokenizer, as in Llama 3: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor

NEW = ["<tool>", "</tool>"]
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_tokenizer() -> Any:
    bytewise = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.pre_tokenizer, plain.decoder = bytewise, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=bytewise.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    plain.train_from_iterator(["the cat sat on the mat", "call the tool and use it"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_llama(rows: int, tied: bool = True, **sizes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=40,
        tie_word_embeddings=tied,
        **(SIZES | sizes),
    )
    return transformers.LlamaForCausalLM(config).eval()


def make_gptj(rows: int) -> Any:
    """Untied, with a bias in the head."""
    torch.manual_seed(0)
    config = transformers.GPTJConfig(
        vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=40, rotary_dim=4, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPTJForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def batch_of(tokenizer: Any) -> dict[str, Tensor]:
    """Sentences with new tokens and without."""
    texts = ["the cat <tool>use it</tool> on", "the cat sat", "<tool><tool>the mat"]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def table(model: Any) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


def head(model: Any) -> Tensor:
    return model.get_output_embeddings().weight.detach().clone()


def train(model: Any, parameters: list[Tensor], batch: dict[str, Tensor], steps: int = 3) -> list[float]:
    """Return the losses of some steps of AdamW with decay."""
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
