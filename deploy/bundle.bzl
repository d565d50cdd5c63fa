"""One archive that holds programs, the libraries that they need, GPU tests and benchmarks.

bundle(name, programs, gpu_tests, benchmarks, e2e_tests, scripts) writes name.tar.gz with one folder, qst:
  bin/      programs; lib/ what they link and a machine may lack
  deploy/   scripts for users
  tests/    run_all.sh, what it runs (runfiles/, as a Bazel test sees them) and lists of it
deploy/README.md has what happens to the files on their way.
"""

def _runfiles_of(target):
    info = target[DefaultInfo]
    return depset(transitive = [info.files, info.default_runfiles.files])

def _bundle_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".tar.gz")
    manifest = ctx.actions.declare_file(ctx.label.name + ".manifest")
    lines = []
    inputs = []
    for target in ctx.attr.programs:
        file = target[DefaultInfo].files_to_run.executable
        lines.append("program\t%s\t%s" % (file.path, file.short_path))
        inputs.append(_runfiles_of(target))
    for target, tests in ctx.attr.gpu_tests.items():
        lines.append("gpu_test\t%s\t%s" % (target[DefaultInfo].files_to_run.executable.short_path, tests))
        inputs.append(_runfiles_of(target))
    for target in ctx.attr.benchmarks:
        lines.append("benchmark\t%s\t-" % target[DefaultInfo].files_to_run.executable.short_path)
        inputs.append(_runfiles_of(target))
    for target in ctx.attr.e2e_tests:
        lines.append("e2e_test\t%s\t-" % target[DefaultInfo].files_to_run.executable.short_path)
        inputs.append(_runfiles_of(target))
    for target in ctx.attr.scripts:
        for file in target[DefaultInfo].files.to_list():
            lines.append("script\t%s\t%s" % (file.path, file.short_path))
        inputs.append(target[DefaultInfo].files)
    runfiles = depset(transitive = inputs)
    for file in runfiles.to_list():
        lines.append("file\t%s\t%s" % (file.path, file.short_path))
    ctx.actions.write(manifest, "\n".join(lines) + "\n")
    shared_data = ctx.var.get("shared_data", "")
    ctx.actions.run(
        executable = ctx.executable.maker,
        arguments = [manifest.path, ctx.info_file.path, ctx.attr.variant, shared_data, out.path],
        inputs = depset([manifest, ctx.info_file], transitive = [runfiles]),
        tools = [ctx.executable.maker],
        outputs = [out],
        mnemonic = "Bundle",
        use_default_shell_env = True,
    )
    return [DefaultInfo(files = depset([out]))]

bundle = rule(
    implementation = _bundle_impl,
    attrs = {
        "programs": attr.label_list(),
        # Target -> the gtest filter of its tests that are for a GPU.
        "gpu_tests": attr.label_keyed_string_dict(),
        "benchmarks": attr.label_list(),
        "e2e_tests": attr.label_list(),
        "scripts": attr.label_list(allow_files = True),
        "variant": attr.string(values = ["cuda", "cpu"]),
        "maker": attr.label(
            default = "//deploy:make_bundle.sh",
            allow_single_file = True,
            executable = True,
            cfg = "host",
        ),
    },
)
