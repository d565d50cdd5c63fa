#!/usr/bin/env python3
"""Makes the golden files of the tokenizer tests with the Hugging Face library.

    pip install -r tests/oracle/requirements.txt
    python3 make_golden.py [SHARED_DATA]

Small tokenizers are trained on the text below, one of each family, and written here with the ids of
texts.jsonl, and the decoded text where it is another (golden.jsonl), and with the text of random ids
(decoded.jsonl). The models of SentencePiece have texts of their own, without spelled-out control symbols. With
the folder of shared data, the same texts are encoded by the published tokenizers in it; their golden files lie
beside, they do not.
"""
import json
import os
import random
import sys
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))

CORPUS = """
The ferry leaves at 7:45 and comes back at 18:30, unless the wind is too strong for it.
She'd said they're coming; we'll see whether it's true, and I'm sure you've heard that he'd rather not.
A list of things: apples, pears, 12 plums, 3.5 kilograms of flour; and 2,000 grams of sugar!
    for index in range(10):
        total += values[index] * weights[index]
    return total / max(1, len(values))
Der Zug fährt über die Brücke, und die Kinder grüßen. El niño comió una manzana después de la lección.
Сегодня хорошая погода, завтра будет дождь. 今天天气很好,明天会下雨。 오늘은 날씨가 좋다. とても静かな夜でした。
Mail to someone@example.org or see <https://example.org/a?b=c&d=e#f> -- it's 100% free (really)...
The side network reads the hidden states of every layer and learns the task while the rest is frozen.
Nothing was left of the old harbour but the wall, the stairs and a lamp that nobody had lit for years.
When the teacher asked who had written the letter, nobody answered, and everybody looked at the floor.
"""

PIECES = [
    " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "a", "B", "é", "ß", "1", "23", "4567", "½", "Ⅷ", "٣", "𝟘", "字",
    "한", "ა", "🙂", "👨‍👩‍👧", "\u00a0", "\u2003", "\u180e", "\u0085", "\u200d", "\u200b", "\u0301", "'s", "'S", "'t",
    "'LL", "ſ", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<0x0A>", "▁", "▁▁", "Ġ", ".",
    ",", "!!", "--", "—", "\x00", "\x7f", "\ufeff", "\ufffd", "\U0010ffff", "\ue000", "hello", "World", "the", " the",
    "user", "<tool>", " <tool> ", "tool", "mask", "[MASK]", " [MASK] ", "x[MASK]y",
]


def texts():
    r = random.Random(20240117)
    result = ["", " ", "a", "\n", *CORPUS.strip().split("\n"), CORPUS]
    result += ["".join(r.choice(PIECES) for _ in range(r.randint(1, 12))) for _ in range(150)]
    for _ in range(40):
        ranges = [(0x20, 0x2FF), (0x300, 0xD7FF), (0xE000, 0x10FFFF)]
        result.append("".join(chr(r.randint(*r.choice(ranges))) for _ in range(r.randint(1, 10))))
    result += [c * 100 for c in "a =\n1é字🙂▁"]
    return result


def added_tokens():
    return [
        AddedToken("<|endoftext|>", special=True, normalized=False),
        AddedToken("<|im_start|>", special=True, normalized=False),
        AddedToken("<|im_end|>", special=True, normalized=False),
        AddedToken("<tool>", special=False, normalized=False, single_word=True),
        AddedToken("[MASK]", special=True, normalized=False, lstrip=True, rstrip=True),
        AddedToken("mask", special=False, normalized=True),
    ]


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.train_from_iterator(CORPUS.split("\n"), trainer)
    t.add_tokens(added_tokens())
    return t


def split_regex():
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+")
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<s>", "</s>"])
    t.train_from_iterator(CORPUS.split("\n"), trainer)
    bos = t.token_to_id("<s>")
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)])])
    return t


def byte_fallback_model(space_model):
    """The vocabulary of a trained model with byte tokens in front, as SentencePiece orders it."""
    trained = json.loads(space_model.to_str())["model"]
    head = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokens = head + [x for x in sorted(trained["vocab"], key=trained["vocab"].get) if x not in head]
    return models.BPE(vocab={x: i for i, x in enumerate(tokens)}, merges=[tuple(m) for m in trained["merges"]],
                      unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def llama_special(t):
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ["<unk>", "<s>", "</s>"]])
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))])


def train_with_spaces():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(CORPUS.split("\n"), trainers.BpeTrainer(vocab_size=350, special_tokens=[]))
    return t


def sentence_piece():
    t = Tokenizer(byte_fallback_model(train_with_spaces()))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    llama_special(t)
    return t


def metaspace():
    t = Tokenizer(byte_fallback_model(train_with_spaces()))
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    t.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="first", split=True)])
    llama_special(t)
    t.add_tokens(added_tokens())
    return t


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")


def train_bytes(t, special):
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS.split("\n"), trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special))
    return t


def qwen2():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return train_bytes(t, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def classifier():
    """Every other normalizer, a space in front, RoBERTa's post-processor."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([
        normalizers.Strip(), normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents(),
        normalizers.Replace("the", "a"), normalizers.Replace(Regex(r"\d+"), "0")])
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    train_bytes(t, ["<s>", "</s>"])
    t.post_processor = processors.RobertaProcessing(sep=("</s>", 1), cls=("<s>", 0))
    return t


def compatible():
    """A pattern that is nobody's, compatibility forms, BERT's post-processor."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{L}+|[^\s\p{L}\p{N}]{1,3}|\P{L}"), behavior="merged_with_previous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    train_bytes(t, ["[CLS]", "[SEP]"])
    t.post_processor = processors.BertProcessing(sep=("[SEP]", 1), cls=("[CLS]", 0))
    return t


def write_decoded(t, path):
    """The text of random ids: characters cut off, byte tokens in any order."""
    r = random.Random(7)
    size = t.get_vocab_size()
    with open(path, "w") as out:
        for _ in range(40):
            top = r.choice([size, min(size, 300)])
            ids = [r.randrange(0, top) for _ in range(r.randint(0, 20))]
            out.write(json.dumps({"ids": ids, "text": t.decode(ids, skip_special_tokens=True)}, ensure_ascii=False,
                                 separators=(",", ":")) + "\n")


SENTENCE_PIECE = {
    "piece_bytes": dict(byte_fallback=True, user_defined_symbols=["<|im_start|>", "▁▁", "12", "x▁y"]),
    "piece_unknown": dict(remove_extra_whitespaces=True, add_dummy_prefix=False),
}


def write_sentence_piece(name, options):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "tokenizer.model")
    with tempfile.TemporaryDirectory() as temporary:
        with open(os.path.join(temporary, "text"), "w") as f:
            f.write(CORPUS)
        sentencepiece.SentencePieceTrainer.train(
            input=os.path.join(temporary, "text"), model_prefix=os.path.join(temporary, "m"), model_type="bpe",
            vocab_size=450 if "byte_fallback" in options else 250, normalization_rule_name="identity",
            minloglevel=2, num_threads=1, **{"remove_extra_whitespaces": False, **options})
        model = sentencepiece_model_pb2.ModelProto()
        with open(os.path.join(temporary, "m.model"), "rb") as f:
            model.ParseFromString(f.read())
    del model.trainer_spec.input[:]
    model.trainer_spec.model_prefix = ""
    with open(path, "wb") as f:
        f.write(model.SerializeToString())
    t = sentencepiece.SentencePieceProcessor(model_file=path)
    controls = ("<s>", "</s>", "<unk>")
    extra = ["x y", " x y", "12<|im_start|> user", "a  b   c ", "  ", "▁▁▁", "312123", "<|im_start|>"]
    with open(os.path.join(folder, "texts.jsonl"), "w") as out, open(os.path.join(folder, "golden.jsonl"), "w") as golden:
        for text in extra + texts():
            if not any(c in text for c in controls):
                out.write(json.dumps(text, ensure_ascii=False) + "\n")
                golden.write(json.dumps({"ids": t.encode(text, add_bos=True)}, separators=(",", ":")) + "\n")


def write_golden(t, path):
    with open(path, "w") as out:
        for text in texts():
            ids = t.encode(text).ids
            line = {"ids": ids}
            if t.decode(ids) != text:
                line["decoded"] = t.decode(ids)
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    with open(os.path.join(HERE, "texts.jsonl"), "w") as out:
        for text in texts():
            out.write(json.dumps(text, ensure_ascii=False) + "\n")
    for name, options in SENTENCE_PIECE.items():
        write_sentence_piece(name, options)
    for make in (byte_level, split_regex, sentence_piece, metaspace, qwen2, classifier, compatible):
        folder = os.path.join(HERE, make.__name__)
        os.makedirs(folder, exist_ok=True)
        t = make()
        t.save(os.path.join(folder, "tokenizer.json"), pretty=False)
        write_golden(t, os.path.join(folder, "golden.jsonl"))
        write_decoded(t, os.path.join(folder, "decoded.jsonl"))
    if len(sys.argv) < 2:
        return
    shared = sys.argv[1]
    for name, path in (("smollm2", "tokenizers/smollm2"), ("tinyllama", "tokenizers/tinyllama"),
                       ("stories260k", "models/stories260K-hf")):
        t = Tokenizer.from_file(os.path.join(shared, path, "tokenizer.json"))
        write_golden(t, os.path.join(HERE, name + ".jsonl"))
        write_decoded(t, os.path.join(HERE, name + "_decoded.jsonl"))
    for name, vocab, merges in (("gpt2", "encoder.json", "vocab.bpe"), ("opt", "gpt2-vocab.json", "gpt2-merges.txt")):
        folder = os.path.join(shared, "tokenizers", name)
        t = Tokenizer(models.BPE.from_file(os.path.join(folder, vocab), os.path.join(folder, merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        special = {"gpt2": ["<|endoftext|>"], "opt": ["<s>", "</s>"]}[name]
        t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in special])
        write_golden(t, os.path.join(HERE, name + ".jsonl"))


if __name__ == "__main__":
    main()
