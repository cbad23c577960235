#!/usr/bin/env python3
"""Makes a small, randomly initialised Llama that vLLM serves offline. Usage: make_tiny_model.py FOLDER [--seed N]

The tokenizer is a byte-level BPE trained on the sources of Python's standard library, so no network is needed. The
output is noise, but every protocol surface is real, and greedy output is reproducible: the same seed and the same
Python give the same weights. The initial range is large so that the likeliest token depends on the context.
"""
import argparse
import json
import pathlib
import sysconfig

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, LENGTH_MAX = 8192, 128, 2, 4, 2, 8192
CORPUS_BYTES = 6_000_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{%- if tools %}{{ '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{%- if m['content'] is string %}{{ m['content'] }}"
    "{%- else %}{%- for c in m['content'] %}{%- if c['type'] == 'text' %}{{ c['text'] }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def corpus():
    root, total = pathlib.Path(sysconfig.get_paths()["stdlib"]), 0
    for path in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")):
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield text
        total += len(text)
        if total > CORPUS_BYTES:
            return


def save_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=None, eos_token="<|im_end|>", pad_token="<|pad|>",
        model_max_length=LENGTH_MAX, clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def save_weights(folder, seed):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    end, pad = SPECIAL.index("<|im_end|>"), SPECIAL.index("<|pad|>")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=LENGTH_MAX,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=end, pad_token_id=pad, initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": pad}))
    return sum(weight.numel() for weight in model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(arguments.folder)
    print(f"{arguments.folder}: {save_weights(arguments.folder, arguments.seed)} parameters")


if __name__ == "__main__":
    main()
