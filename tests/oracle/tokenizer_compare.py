#!/usr/bin/env python3
"""Compares token ids and decoded text with Hugging Face tokenizers and SentencePiece, on at least 20 MB of mixed text.

    bazel build //worker/text:tokenize_texts
    pip install -r tests/oracle/requirements.txt
    python3 tests/oracle/tokenizer_compare.py --shared SHARED_DATA

Each tokenizer is put into a folder as it is published; bazel-bin's tokenize_texts reads that folder, the library reads
its files. Small tokenizers of the LLaMA 3, Qwen2 and other kinds are trained on the text first, with the published
patterns. Bytes that are not UTF-8 reach the libraries as U+FFFD. Prints one line a tokenizer, and the first
differences; ends with status 1 if there is any.
"""
import argparse
import array
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from text_corpus import corpus

os.environ["TOKENIZERS_PARALLELISM"] = "false"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class HuggingFace:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def encode(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch(texts)]

    def decode(self, ids):
        return self.tokenizer.decode_batch(ids, skip_special_tokens=True)


class SentencePiece:
    """With BOS. Control symbols that the text spells out are not recognised by it: such texts are left out."""

    def __init__(self, path):
        self.model = sentencepiece.SentencePieceProcessor(model_file=path)
        self.left_out = [self.model.id_to_piece(i) for i in range(self.model.get_piece_size())
                         if self.model.is_control(i) or self.model.is_unknown(i)]

    def encode(self, texts):
        return self.model.encode(texts, add_bos=True, num_threads=1)

    decode = None  # an unknown token is text of its own there


def save(folder, name, tokenizer):
    path = os.path.join(folder, name)
    os.makedirs(path)
    tokenizer.save(os.path.join(path, "tokenizer.json"))
    return path, HuggingFace(tokenizer)


def copy(folder, name, files, config=None):
    path = os.path.join(folder, name)
    os.makedirs(path)
    for source, target in files:
        shutil.copyfile(source, os.path.join(path, target))
    if config:
        with open(os.path.join(path, "tokenizer_config.json"), "w") as f:
            json.dump(config, f)
    return path


def train_byte_level(texts, pattern, normalizer=None, special=(), **model):
    t = Tokenizer(models.BPE(**model))
    if normalizer:
        t.normalizer = normalizer
    if pattern is None:
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=8000, show_progress=False, special_tokens=list(special),
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def published(shared, folder):
    source = lambda name: os.path.join(shared, "tokenizers", name)
    for name, path in (("tinyllama", source("tinyllama")), ("smollm2", source("smollm2")),
                       ("stories260K", os.path.join(shared, "models/stories260K-hf"))):
        yield name, path, HuggingFace(Tokenizer.from_file(os.path.join(path, "tokenizer.json")))
    path = copy(folder, "llama", [(source("llama/tokenizer.model"), "tokenizer.model")])
    yield "llama tokenizer.model", path, SentencePiece(source("llama/tokenizer.model"))
    for name, vocab, merges, bos in (("gpt2", "encoder.json", "vocab.bpe", "<|endoftext|>"),
                                     ("opt", "gpt2-vocab.json", "gpt2-merges.txt", "</s>")):
        adds_bos = name == "opt"
        files = [(source(f"{name}/{x}"), x) for x in (vocab, merges)]
        config = {"bos_token": bos, "eos_token": bos, "unk_token": bos, "add_bos_token": adds_bos,
                  "tokenizer_class": "GPT2Tokenizer"}
        path = copy(folder, name, files, config)
        t = Tokenizer(models.BPE.from_file(source(f"{name}/{vocab}"), source(f"{name}/{merges}")))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        t.add_special_tokens([AddedToken(bos, special=True, normalized=False)])
        if adds_bos:
            t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, t.token_to_id(bos))])
        yield name, path, HuggingFace(t)


def trained(texts, folder):
    sample = texts[::7]
    llama3 = train_byte_level(sample, LLAMA3, special=["<|begin_of_text|>", "<|end_of_text|>"], ignore_merges=True)
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])])
    yield ("llama3 style", *save(folder, "llama3", llama3))
    qwen2 = train_byte_level(sample, QWEN2, normalizers.NFC(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    yield ("qwen2 style", *save(folder, "qwen2", qwen2))
    yield ("gpt-neox style", *save(folder, "neox", train_byte_level(sample, None, normalizers.NFC(), ["<|endoftext|>"])))
    # A pattern that no scanner of ours knows, and the other normalizers.
    other = r"\p{L}+|\p{N}{1,4}|[^\s\p{L}\p{N}]{1,3}|\s+"
    for name, normalizer in (("nfd", normalizers.NFD()), ("nfkc", normalizers.NFKC()), ("nfkd", normalizers.NFKD()),
                             ("lowercase", normalizers.Lowercase()),
                             ("strip accents", normalizers.Sequence([normalizers.Strip(), normalizers.NFD(), normalizers.StripAccents()]))):
        t = train_byte_level(sample[::20], other, normalizer)
        yield (name, *save(folder, name.replace(" ", "-"), t))


def trained_sentence_piece(texts, folder):
    lines = os.path.join(folder, "lines.txt")
    with open(lines, "w") as f:
        f.writelines(line[:1000] + "\n" for text in texts[::11] for line in text.split("\n") if line.strip() and "\0" not in line)
    for name, options in (("sentencepiece byte fallback", {"byte_fallback": True}),
                          ("sentencepiece unknown", {"remove_extra_whitespaces": True, "add_dummy_prefix": False}),
                          ("sentencepiece user-defined", {"byte_fallback": True, "user_defined_symbols": ["<|im_start|>", "▁▁", "12", "word"]})):
        path = os.path.join(folder, name.replace(" ", "-"))
        os.makedirs(path)
        options = {"remove_extra_whitespaces": False, **options}
        sentencepiece.SentencePieceTrainer.train(
            input=lines, model_prefix=os.path.join(path, "tokenizer"), model_type="bpe", vocab_size=4000,
            normalization_rule_name="identity", character_coverage=0.9995, minloglevel=2, input_sentence_size=30000,
            num_threads=1, **options)
        yield name, path, SentencePiece(os.path.join(path, "tokenizer.model"))


def run_ours(program, folder, texts):
    data = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    start = time.monotonic()
    done = subprocess.run([program, folder], input=data, stdout=subprocess.PIPE)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"{program} {folder}: status {done.returncode}")
    out, at = done.stdout, 0
    for _ in texts:
        count, = struct.unpack_from("<I", out, at)
        ids = array.array("i", out[at + 4:at + 4 + 4 * count]).tolist()
        at += 4 + 4 * count
        size, = struct.unpack_from("<I", out, at)
        yield ids, out[at + 4:at + 4 + size].decode(), seconds
        at += 4 + size


def answers(name, library, texts, cache):
    """The library's ids and decoded texts, kept in `cache` if there is one: they take most of the time."""
    path = cache and os.path.join(cache, name.replace(" ", "-") + ".pickle")
    if path and os.path.exists(path):
        with open(path, "rb") as f:
            return pickle.load(f)
    ids = library.encode(texts)
    result = ids, library.decode(ids) if library.decode else None
    if path:
        with open(path, "wb") as f:
            pickle.dump(result, f)
    return result


def compare(name, folder, library, texts, program, cache):
    originals = texts
    if getattr(library, "left_out", None):
        marks = [m.encode() for m in library.left_out]
        originals = [t for t in texts if not any(m in t for m in marks)]
    decoded = [t.decode(errors="replace") for t in originals]
    expected, expected_texts = answers(name, library, decoded, cache)
    differences = text_differences = tokens = 0
    for i, (ids, text, _) in enumerate(run_ours(program, folder, originals)):
        tokens += len(ids)
        if ids != expected[i]:
            differences += 1
            if differences <= 3:
                at = next((k for k, (a, b) in enumerate(zip(ids, expected[i])) if a != b), min(len(ids), len(expected[i])))
                print(f"  text {i} {decoded[i][:120]!r}: at token {at} {ids[at:at + 8]}, expected {expected[i][at:at + 8]}")
        if expected_texts is not None and text != expected_texts[i]:
            text_differences += 1
            if text_differences <= 3:
                print(f"  text {i}: decoded {text[:120]!r}, expected {expected_texts[i][:120]!r}")
    against = "decoding not compared" if expected_texts is None else f"{text_differences} decoded differently"
    print(f"{name}: {len(originals)} texts, {sum(map(len, originals)) / 1e6:.1f} MB, {tokens} tokens: "
          f"{differences} differences, {against}", flush=True)
    return differences + text_differences


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", help="folder of shared data; without it, only trained tokenizers are compared")
    parser.add_argument("--program", default="bazel-bin/worker/text/tokenize_texts")
    parser.add_argument("--only", help="compare tokenizers whose name has this")
    parser.add_argument("--keep", help="put the tokenizers' folders here and keep them")
    parser.add_argument("--cache", help="keep the libraries' answers in this folder, and use those that are there")
    options = parser.parse_args()
    kinds = corpus(options.shared)
    for kind, texts in kinds.items():
        print(f"{kind}: {len(texts)} texts, {sum(map(len, texts)) / 1e6:.1f} MB")
    texts = [t for group in kinds.values() for t in group]
    print(f"all: {sum(map(len, texts)) / 1e6:.1f} MB; tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}")
    found = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or temporary
        readable = [t.decode() for group in ("data sets", "source code", "manual pages", "translations")
                    for t in kinds[group] if t.decode(errors="ignore").encode() == t]
        candidates = list(published(options.shared, folder)) if options.shared else []
        candidates += list(trained(readable, folder)) + list(trained_sentence_piece(readable, folder))
        for name, path, library in candidates:
            if not options.only or options.only in name:
                # Of normalizers alone, a part tells enough.
                is_small = name in ("nfd", "nfkc", "nfkd", "lowercase", "strip accents")
                part = texts[::8] if is_small else texts
                found += compare(name, path, library, part, options.program, options.cache)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
