"""Mixed text for comparing tokenizers: data sets, source code, many languages and scripts, and text that is none.

Deterministic for a given machine. What is not installed there (manual pages, translations) is left out; the caller
prints how much there is of each kind.
"""
import glob
import gzip
import json
import os
import random
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def strings_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from strings_of(v)
    elif isinstance(value, list):
        for v in value:
            yield from strings_of(v)


def pieces(data, r):
    """Cuts a file into texts: mostly some lines, now and then much of it."""
    lines = data.splitlines(keepends=True)
    at = 0
    while at < len(lines):
        kind = r.random()
        size = 1 if kind < 0.3 else r.randint(2, 60) if kind < 0.97 else r.randint(100, 4000)
        yield b"".join(lines[at:at + size])
        at += size


def shared_texts(folder, r):
    """Every text file of the shared data: the strings of JSON, the lines of tables."""
    for path in sorted(glob.glob(os.path.join(folder, "**"), recursive=True)):
        if "/tokenizers/" in path or "/models/" in path or not os.path.isfile(path):
            continue
        with open(path, "rb") as f:
            data = f.read()
        if path.endswith(".jsonl"):
            for line in data.decode().split("\n"):
                if line:
                    yield from (s.encode() for s in strings_of(json.loads(line)))
        elif path.endswith((".tsv", ".csv", ".md", ".txt", ".json")):
            yield from pieces(data, r)


def source_texts(r):
    names = subprocess.run(["git", "-C", ROOT, "ls-files"], check=True, capture_output=True, text=True).stdout.split("\n")
    for name in sorted(names):
        if name.endswith((".cc", ".h", ".cu", ".py", ".sh", ".md", ".proto", "BUILD", ".bzl")):
            with open(os.path.join(ROOT, name), "rb") as f:
                yield from pieces(f.read(), r)


def header_texts(r, limit=1 << 20):
    paths = sorted(glob.glob("/usr/include/**/*.h*", recursive=True))
    r.shuffle(paths)
    size = 0
    for path in paths:
        if size < limit and os.path.isfile(path) and os.path.getsize(path) < 200000:
            with open(path, "rb") as f:
                data = f.read()
            size += len(data)
            yield from pieces(data, r)


def manual_texts(r, limit_per_language=80000):
    """Manual pages in other languages."""
    for language in sorted(os.listdir("/usr/share/man") if os.path.isdir("/usr/share/man") else []):
        if language.startswith("man"):
            continue
        size = 0
        for path in sorted(glob.glob(f"/usr/share/man/{language}/man*/*.gz")):
            if size < limit_per_language and os.path.isfile(path):
                with gzip.open(path) as f:
                    data = f.read()
                size += len(data)
                yield from pieces(data, r)


def translation_texts(limit_per_language=10000):
    """Translated messages of programs, in well over a hundred languages."""
    for folder in sorted(glob.glob("/usr/share/locale/*/LC_MESSAGES")):
        size = 0
        for path in sorted(glob.glob(folder + "/*.mo")):
            if size >= limit_per_language:
                break
            with open(path, "rb") as f:
                data = f.read()
            count, table = int.from_bytes(data[8:12], "little"), int.from_bytes(data[16:20], "little")
            for i in range(count):
                length, offset = (int.from_bytes(data[table + 8 * i + k:table + 8 * i + k + 4], "little") for k in (0, 4))
                size += length
                if size < limit_per_language:
                    yield data[offset:offset + length].replace(b"\0", b"\n")


EMOJI = ["🙂", "👨‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "🏴‍☠️", "1️⃣", "🤷🏾‍♀️", "✅", "🫠"]
MARKS = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "▁", "▁▁", "Ġ",
         "<0x0A>", "'s", "'S", "'ſ", "'LL", "\r\n", "\n\n", "  ", "   \n  ", "\t", "\u00a0", "\u2028", "\u0085", "\u180e",
         "\u200b", "\u200d", "\ufeff", "12345", "½", "Ⅷ", "٣", "e\u0301", "\u1100\u1161\u11a8", "ﬁ", "İ", "ẞ", "\u0344"]


def unicode_texts(r, limit=1 << 20):
    """Characters of every block, close together and mixed; signs that tokenizers treat specially among them."""
    size = 0
    while size < limit:
        kind = r.random()
        parts = []
        base = r.choice([0x20, 0xA0, r.randrange(0x300, 0xD700), r.randrange(0xE000, 0x20000), r.randrange(0x20000, 0x110000)])
        for _ in range(r.randint(1, 60)):
            if kind < 0.4:
                c = base + r.randrange(0, 256)
            elif kind < 0.7:
                c = r.choice([r.randrange(0x20, 0x7F), r.randrange(0xA0, 0x3000), r.randrange(0x3000, 0xD800),
                              r.randrange(0xE000, 0x20000)])
            else:
                parts.append(r.choice([r.choice(MARKS), r.choice(EMOJI), " ", "word", "Wort", "слово", "词", "7"]))
                continue
            parts.append(chr(c) if c < 0x110000 and not 0xD800 <= c < 0xE000 else " ")
        text = "".join(parts).encode()
        size += len(text)
        yield text


def byte_texts(r, limit=1 << 19):
    """Control characters, and bytes that are no UTF-8: noise, and text with bytes damaged or cut off."""
    size = 0
    while size < limit:
        kind = r.random()
        if kind < 0.3:
            text = bytes(r.randrange(0, 0x21) if r.random() < 0.7 else r.randrange(0x7F, 0xA0) for _ in range(r.randint(1, 80)))
            text = text.decode("latin-1").encode()
        elif kind < 0.6:
            text = bytes(r.randrange(0, 256) for _ in range(r.randint(1, 100)))
        else:
            text = bytearray("".join(r.choice(["Straße ", "день ", "日本語", "🙂", "plain text, ", "é"]) for _ in range(r.randint(1, 20))).encode())
            for _ in range(r.randint(1, 6)):
                text[r.randrange(len(text))] = r.randrange(0, 256)
            text = bytes(text[:r.randint(1, len(text))])
        size += len(text)
        yield text


def corpus(shared):
    """Lists of texts (bytes) by kind."""
    r = random.Random(20240117)
    return {
        "data sets": list(shared_texts(shared, r)) if shared else [],
        "source code": list(source_texts(r)) + list(header_texts(r)),
        "manual pages": list(manual_texts(r)),
        "translations": list(translation_texts()),
        "unicode": list(unicode_texts(r)),
        "bytes": list(byte_texts(r)),
    }
