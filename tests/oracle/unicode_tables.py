#!/usr/bin/env python3
"""Writes worker/text/unicode_tables.cc: what the Hugging Face library's own Unicode tables say.

The library mixes versions of Unicode: its patterns know letters and numbers of a recent one, its normal forms and marks
are those of an old one. Token ids depend on both, so the sets are asked from the library itself, code point by code
point. Needs tests/oracle/requirements.txt and libutf8proc; run from the repository root:

    python3 tests/oracle/unicode_tables.py worker/text/unicode_tables.cc
"""
import ctypes
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]

utf8proc = ctypes.CDLL("libutf8proc.so.2")
utf8proc.utf8proc_category_string.restype = ctypes.c_char_p
utf8proc.utf8proc_unicode_version.restype = ctypes.c_char_p
libc = ctypes.CDLL("libc.so.6")
libc.free.argtypes = [ctypes.c_void_p]


def matching(pattern):
    """The code points that a pattern of one character matches."""
    text = "".join(map(chr, CODE_POINTS))
    rest = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(text)
    return set(CODE_POINTS) - {ord(c) for word, _ in rest for c in word}


def normal_form(name):
    function = getattr(utf8proc, "utf8proc_" + name)
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p]

    def apply(text):
        pointer = function(text.encode())
        result = ctypes.string_at(pointer).decode()
        libc.free(pointer)
        return result
    return apply


def inert_in_normal_forms():
    """Characters that utf8proc decomposes, composes or reorders and the library does not know."""
    # Neither library changes these blocks from one version to the next.
    stable = [(0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0x17000, 0x18CFF), (0x20000, 0x323AF), (0xF0000, 0x10FFFF)]
    assigned = [c for c in CODE_POINTS if c and not any(a <= c <= b for a, b in stable)
                and utf8proc.utf8proc_category_string(c) != b"Cn"]
    found = set()
    for name in ("NFC", "NFD", "NFKC", "NFKD"):
        ours, theirs = normal_form(name), getattr(normalizers, name)().normalize_str
        for c in assigned:
            for text in (chr(c), "a\u0301" + chr(c) + "\u0323", "a\u0323" + chr(c) + "\u0301"):
                if ours(text) != theirs(text):
                    found.add(c)
    # What a character decomposes into takes part in composing it.
    decompose = normal_form("NFD")
    return found | {ord(part) for c in found for part in decompose(chr(c)) if ord(part) > 0xFFFF}


def table(name, code_points):
    ranges = []
    for c in sorted(code_points):
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    lines, line = [], "   "
    for first, last in ranges:
        item = f" {{0x{first:X}, 0x{last:X}}},"
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    return f"const CodePointRange {name}[] = {{\n" + "\n".join(lines + [line]) + f"\n}};\nconst size_t {name}Size = {len(ranges)};\n"


def main():
    letters, numbers, spaces = matching(r"\p{L}"), matching(r"\p{N}"), matching(r"\s")
    assert unicodedata.unidata_version == "14.0.0", "needs the Python of Debian 12"
    old = {kind: {c for c in CODE_POINTS if unicodedata.category(chr(c))[0] == kind} for kind in "LN"}
    strip = normalizers.StripAccents().normalize_str
    # Unicode does not make a mark a letter; two became letters later, which the library does not know.
    marks = {c for c in CODE_POINTS if strip(chr(c)) == ""}
    with open(sys.argv[1], "w") as out:
        out.write(f"""// Made by tests/oracle/unicode_tables.py with tokenizers {tokenizers.__version__} and utf8proc's Unicode \
{utf8proc.utf8proc_unicode_version().decode()}; not edited by hand.
// clang-format off
#include "worker/text/unicode_tables.h"

namespace qst {{

{table("kLetterRanges", letters)}
{table("kNumberRanges", numbers)}
{table("kSpaceRanges", spaces)}
{table("kNewLetterRanges", letters - old["L"])}
{table("kNewNumberRanges", numbers - old["N"])}
{table("kMarkRanges", marks)}
{table("kInertRanges", inert_in_normal_forms())}
}}  // namespace qst
""")


if __name__ == "__main__":
    main()
