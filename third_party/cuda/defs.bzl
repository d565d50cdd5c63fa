"""Libraries with CUDA sources.

cuda_library(name, srcs, hdrs, stub_srcs, deps) is a cc_library that is built in one of three ways:
  default             stub_srcs by the host compiler: every function says that this build has no CUDA backend
  --config=cuda       srcs (.cu) by nvcc
  --config=cuda_shim  srcs (.cu) by the host compiler against kernels/testing/cuda_shim, to be run on the CPU
"""

_ARCHITECTURES = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_89,code=sm_89",
    "-gencode=arch=compute_90a,code=sm_90a",
]
_HOPPER = ["-gencode=arch=compute_90a,code=sm_90a"]

_NVCC = "/usr/local/cuda/bin/nvcc"
_NVCC_OPTIONS = [
    "-c",
    "-std=c++17",
    "-O3",
    # The bundle carries the kernels in several programs.
    "--compress-mode=size",
    "--Werror=all-warnings",
    "-Xcompiler=-Wall,-Wextra,-Wno-sign-compare,-Wno-unused-parameter,-fPIC",
    # Registers, shared memory and spills of every kernel, for the report (kernels/cuda/resources.md).
    "-Xptxas=-v",
]

def _nvcc_objects_impl(ctx):
    context = cc_common.merge_cc_infos(cc_infos = [d[CcInfo] for d in ctx.attr.deps]).compilation_context
    includes = ["-I."] + ["-I" + d for d in context.includes.to_list()]
    includes += ["-isystem" + d for d in context.system_includes.to_list() if "local_cuda" not in d]
    objects = []
    for src in ctx.files.srcs:
        if src.extension != "cu":
            continue
        stem = ctx.label.name + "/" + src.basename[:-len(".cu")]
        obj = ctx.actions.declare_file(stem + ".o")
        report = ctx.actions.declare_file(stem + ".ptxas")
        arguments = _NVCC_OPTIONS + ctx.attr.architectures + includes + [src.path, "-o", obj.path]
        ctx.actions.run_shell(
            inputs = depset(ctx.files.srcs + ctx.files.hdrs, transitive = [context.headers]),
            outputs = [obj, report],
            # The compiler's remarks become a file; they are shown only when it fails.
            command = "%s %s > %s 2>&1 || { cat %s >&2; exit 1; }" %
                      (_NVCC, " ".join(["'%s'" % a for a in arguments]), report.path, report.path),
            mnemonic = "Nvcc",
            progress_message = "Compiling %s with nvcc" % src.short_path,
            use_default_shell_env = True,
        )
        objects += [obj, report]
    return [
        DefaultInfo(files = depset([o for o in objects if o.extension == "o"])),
        OutputGroupInfo(ptxas = depset([o for o in objects if o.extension == "ptxas"])),
    ]

_nvcc_objects = rule(
    implementation = _nvcc_objects_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu", ".cuh", ".h"]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "architectures": attr.string_list(),
    },
)

def cuda_library(name, srcs, hdrs = [], stub_srcs = [], deps = [], visibility = None, testonly = False):
    """See the top of this file. srcs: .cu and private headers (.h, .cuh)."""
    private = [s for s in srcs if s.endswith(".h")]
    private_cuh = [s for s in srcs if s.endswith(".cuh")]
    cu = [s for s in srcs if s.endswith(".cu")]
    all_deps = deps + ["//third_party/cuda:runtime"]

    _nvcc_objects(
        name = name + "_nvcc",
        srcs = srcs,
        hdrs = hdrs,
        deps = deps,
        architectures = select({
            "//third_party/cuda:is_hopper_only": _HOPPER,
            "//conditions:default": _ARCHITECTURES,
        }),
        testonly = testonly,
        tags = ["manual"],
        visibility = visibility,
    )
    for source in cu:
        native.genrule(
            name = name + "_" + source.replace(".", "_") + "_host",
            srcs = [source],
            outs = [source + ".cc"],
            cmd = "cp $< $@",
            tags = ["manual"],
        )
    native.cc_library(
        name = name,
        srcs = select({
            "//third_party/cuda:is_cuda": [":" + name + "_nvcc"],
            "//third_party/cuda:is_shim": [source + ".cc" for source in cu] + private,
            "//conditions:default": stub_srcs,
        }),
        hdrs = hdrs,
        # cc_library knows no .cuh among its sources.
        textual_hdrs = private_cuh,
        copts = select({
            # The copy is not beside its source; unused parts of the shim's headers stay silent.
            "//third_party/cuda:is_shim": ["-DQST_CUDA_SHIM=1", "-O2", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-unused-variable"],
            "//conditions:default": [],
        }),
        deps = all_deps,
        testonly = testonly,
        visibility = visibility,
    )
