# Sourced by sh scripts of the bundle: finds the libraries of CUDA that the bundle does not carry, which a machine may keep
# in many places, and puts their folders at the end of LD_LIBRARY_PATH.

# Folders that may hold them, one a line, best first.
qst_cuda_folders() {
  printf '%s\n' "${QST_CUDA_LIBS:-}" "${LD_LIBRARY_PATH:-}" | tr ':' '\n'
  printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
    /usr/lib/x86_64-linux-gnu /usr/lib64 /opt/cuda/lib64
  # PyTorch brings them as Python packages: nvidia/cu13/lib, nvidia/nccl/lib.
  {
    for python in python3 python; do
      "$python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))' 2>/dev/null && break
    done
    printf '%s\n' "${VIRTUAL_ENV:-}"/lib/python3*/site-packages "${CONDA_PREFIX:-}"/lib/python3*/site-packages \
      /usr/local/lib/python3*/*-packages /usr/lib/python3*/*-packages /opt/*/lib/python3*/site-packages
  } | while IFS= read -r packages; do
    printf '%s\n' "$packages"/nvidia/*/lib "$packages"/torch/lib
  done
}

# qst_find_cuda_libraries LIST: LIST is a file with a library's name a line, and "optional" behind it if programs run
# without. Says what is missing, and returns 1.
qst_find_cuda_libraries() {
  qst_folders=$(qst_cuda_folders)
  qst_missing=
  while read -r qst_library qst_optional; do
    qst_found=
    while IFS= read -r qst_folder; do
      if [ -n "$qst_folder" ] && [ -e "$qst_folder/$qst_library" ]; then
        qst_found=$qst_folder
        break
      fi
    done <<QST_FOLDERS
$qst_folders
QST_FOLDERS
    if [ -z "$qst_found" ]; then
      [ -n "$qst_optional" ] || qst_missing="$qst_missing $qst_library"
    else
      case ":${LD_LIBRARY_PATH:-}:" in
        *":$qst_found:"*) ;;
        *) LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$qst_found ;;
      esac
    fi
  done < "$1"
  export LD_LIBRARY_PATH
  [ -z "$qst_missing" ] && return 0
  echo "qst: not found on this machine:$qst_missing" >&2
  echo "qst: they belong to CUDA 13 (cuBLAS, NCCL). Install them (NVIDIA's packages, or PyTorch for CUDA 13 with pip), or" \
    "name the folder that has them with QST_CUDA_LIBS=FOLDER[:FOLDER]." >&2
  echo "qst: looked into LD_LIBRARY_PATH, /usr/local/cuda, the system's library folders and nvidia/*/lib of Python's" \
    "packages." >&2
  return 1
}
