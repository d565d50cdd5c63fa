#!/usr/bin/env python3
"""Speed of encoding beside Hugging Face tokenizers and SentencePiece: one thread each, the same texts, by turns.

    bazel build //tests/bench:tokenizer_bench
    python3 tests/bench/peers/tokenizers_peer.py --shared SHARED_DATA

The peer's time is that of its quickest call for many texts: encode_batch_fast (no offsets), encode of SentencePiece.
Times are processor time, so that a busy machine does not favour either. Each round times ours, then the peer; the table
has medians, and the smallest ratio of a round.
"""
import argparse
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../oracle"))

import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
from text_corpus import corpus  # noqa: E402
from tokenizer_compare import HuggingFace, published, trained, trained_sentence_piece  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", required=True, help="folder of shared data")
    parser.add_argument("--program", default="bazel-bin/tests/bench/tokenizer_bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=4, metavar="N", help="of the corpus, take every N-th text")
    parser.add_argument("--only", help="measure tokenizers whose name has this")
    options = parser.parse_args()
    kinds = corpus(options.shared)
    readable = [t.decode() for group in ("data sets", "source code", "manual pages", "translations")
                for t in kinds[group] if t.decode(errors="ignore").encode() == t]
    # A mixture in the proportions of the corpus.
    texts = readable[::options.every]
    size = sum(len(t.encode()) for t in texts)
    print(f"{len(texts)} texts, {size / 1e6:.1f} MB; tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}, "
          f"{options.rounds} rounds\n\n| tokenizer | ours MB/s | peer MB/s | ratio | smallest |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "texts")
        with open(path, "wb") as f:
            for text in texts:
                data = text.encode()
                f.write(struct.pack("<I", len(data)) + data)
        candidates = list(published(options.shared, folder)) + list(trained(readable, folder))
        candidates += list(trained_sentence_piece(readable, folder))
        for name, model, library in candidates:
            if options.only and options.only not in name:
                continue
            ours = subprocess.Popen([options.program, model, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            is_hugging_face = isinstance(library, HuggingFace)
            encode = library.tokenizer.encode_batch_fast if is_hugging_face else library.encode
            times = []
            for round_number in range(options.rounds + 1):
                ours.stdin.write("\n")
                ours.stdin.flush()
                seconds = float(ours.stdout.readline().split()[0])
                start = time.process_time()
                result = encode(texts)
                peer = time.process_time() - start
                del result
                if round_number > 0:  # the first warms both up
                    times.append((seconds, peer))
            ours.stdin.close()
            ours.wait()
            mine, theirs = (statistics.median(t[i] for t in times) for i in (0, 1))
            print(f"| {name} | {size / 1e6 / mine:.1f} | {size / 1e6 / theirs:.1f} | {theirs / mine:.2f} | "
                  f"{min(t[1] / t[0] for t in times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
