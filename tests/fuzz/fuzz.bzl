"""Fuzz targets that are also ordinary tests."""

def qst_fuzz_target(name, srcs, deps, corpus):
    """Declares a fuzz target around an LLVMFuzzerTestOneInput.

    Makes two targets:
      <name>              the libFuzzer binary. Needs Clang: build it with --config=fuzz (tests/fuzz/run.sh does).
      <name>_corpus_test  an ordinary test, with any compiler: runs every corpus file, and every shorter
                          beginning of it, through the target once.

    Args:
      name: of the target, ending in _fuzz.
      srcs: the file with LLVMFuzzerTestOneInput.
      deps: what it needs.
      corpus: list of seed files (usually a glob of corpus/<name>/*). Findings, once fixed, are added there.
    """
    native.cc_library(
        name = name + "_target",
        testonly = True,
        srcs = srcs,
        deps = deps,
        # main, in libFuzzer or in corpus_main, calls into it.
        alwayslink = True,
    )
    native.cc_binary(
        name = name,
        testonly = True,
        # Not part of wildcards: other compilers have no libFuzzer.
        tags = ["manual"],
        # Bazel links with the C driver, which leaves out the undefined-behaviour checks of C++.
        linkopts = [
            "-fsanitize=fuzzer",
            "-fsanitize-link-c++-runtime",
        ],
        deps = [":" + name + "_target"],
    )
    native.cc_test(
        name = name + "_corpus_test",
        size = "small",
        args = ["$(location %s)" % file for file in corpus],
        data = corpus,
        deps = [
            ":" + name + "_target",
            ":corpus_main",
        ],
    )
