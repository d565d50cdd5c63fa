"""C++ code from .proto files with the system's protoc and gRPC plugin."""

def cc_proto(name, srcs, deps = [], grpc = False, visibility = None):
    """A cc_library of the messages (and, with grpc = True, the services) in srcs.

    Include the result as "<package>/<file>.pb.h" and "<package>/<file>.grpc.pb.h".

    Args:
      name: the library; "<name>_srcs" holds the .proto files for dependants.
      srcs: .proto files, importing each other by workspace path.
      deps: other cc_proto libraries that srcs import.
      grpc: whether srcs define services.
      visibility: as everywhere.
    """
    native.filegroup(name = name + "_srcs", srcs = srcs + [d + "_srcs" for d in deps], visibility = visibility)
    extensions = ["pb"] + (["grpc.pb"] if grpc else [])
    headers = [s[:-len("proto")] + e + ".h" for s in srcs for e in extensions]
    sources = [s[:-len("proto")] + e + ".cc" for s in srcs for e in extensions]
    options = "--cpp_out=$(GENDIR)"
    if grpc:
        options += " --grpc_out=$(GENDIR) --plugin=protoc-gen-grpc=$$(command -v grpc_cpp_plugin)"
    native.genrule(
        name = name + "_gen",
        srcs = [name + "_srcs"],
        outs = headers + sources,
        cmd = "protoc -I. -I/usr/include %s %s" % (
            options,
            " ".join([native.package_name() + "/" + s for s in srcs]),
        ),
    )
    native.cc_library(
        name = name,
        srcs = sources,
        hdrs = headers,
        # Generated code is not ours to keep free of warnings.
        copts = ["-w"],
        visibility = visibility,
        deps = deps + ["@system//:grpc" if grpc else "@system//:protobuf"],
    )
